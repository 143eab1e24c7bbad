"""RKD ("Relational Knowledge Distillation"): Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068.

The student need not copy where the teacher puts a picture, only how pictures stand to each other: the distances of pairs
and the angles of triplets in the batch. Both are blind to rotation, shift and scale, so no projection is needed.
Formulas, weights and means as in RepDistiller and mdistiller (read in code). What differs: two pictures in one point
have distance 0, direction 0 and no gradient there (in the code 1e-6 and a slope up to 1e12). B points of more than B
numbers are first written in B coordinates of their own span, which changes no distance, angle or gradient. Directions
are worked out in chunks of vertices, again in the backward pass if there is more than one chunk: B * B * D numbers never
stand, B^3 do not either.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tinkit.host.distill.gather import gather
from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import at_least

COINCIDE = 1e-5  # points closer than this are one point; the root mean square distance to their mean is 1
CHUNK = 2**23  # numbers in one chunk of directions: 32 MB of float32


class RKD(nn.Module):
    """Keeps the distances of picture pairs and the angles of picture triplets, on global features.

    x: global features (B, D) of either network; the two widths need not agree.
        distance_ij = |x_i - x_j| / mean of those that are not 0                       (B, B)
        angle_ijk   = cosine of the angle at x_i between x_j and x_k, 0 if two coincide  (B, B, B)
        loss = 25 mean_ij huber(distance^S - distance^T) + 50 mean_ijk huber(angle^S - angle^T)
        huber(e) = e^2 / 2 for |e| < 1, |e| - 1/2 beyond
    """

    paper = "arXiv 1904.05068"
    needs = ()
    uses = ()
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing, as in the authors' code; gather=True: the global features of both networks, with gradient"

    def __init__(self, pair: Pair, *, distance_weight: float = 25.0, angle_weight: float = 50.0, gather: bool = False):
        super().__init__()
        at_least(0, distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight, self.angle_weight, self.gather = distance_weight, angle_weight, gather

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student_BD, teacher_BD = batch.student.global_BD, batch.teacher.global_BD
        if self.gather:
            student_BD, teacher_BD = gather(student_BD), gather(teacher_BD)
        student_BD, teacher_BD = shape(student_BD), shape(teacher_BD)
        parts = {
            "distance": F.smooth_l1_loss(distances(student_BD), distances(teacher_BD)),
            "angle": angle_error(student_BD, teacher_BD),
        }
        return {**parts, "loss": self.distance_weight * parts["distance"] + self.angle_weight * parts["angle"]}


def shape(points_BD) -> torch.Tensor:
    """The same figure around 0, of size 1, in coordinates of its own span: (B, min(B, D)).

    Centre, size and basis may be constants: the loss does not change with the first two, and inner products change only
    with the part of a movement that lies in the span.
    """
    with torch.no_grad():
        centre_D = points_BD.mean(0)
        centred_BD = points_BD - centre_D
        size = torch.linalg.vector_norm(centred_BD) / len(points_BD) ** 0.5
        size = torch.where(size > 0, size, 1)
        wide = points_BD.shape[1] > len(points_BD)
        basis_DB = torch.linalg.qr(centred_BD.mT / size).Q if wide else None
    points_BD = (points_BD - centre_D) / size
    return points_BD if basis_DB is None else points_BD @ basis_DB


def distances(points_BD) -> torch.Tensor:
    """(B, B), divided by the mean of those that are not 0; all 0 where all points coincide."""
    # The direct way: by inner products the distance of near points would be rounding noise.
    apart_BB = torch.cdist(points_BD, points_BD, compute_mode="donot_use_mm_for_euclid_dist")
    apart_BB = torch.where(apart_BB > COINCIDE, apart_BB, 0)
    mean = apart_BB.sum() / (apart_BB > 0).sum().clamp(min=1)
    return apart_BB / torch.where(mean > 0, mean, 1)


def angle_error(student_BD, teacher_BD) -> torch.Tensor:
    """Mean Huber error of the cosines of all B^3 angles; vertices in chunks, so that B * B * D numbers never stand."""
    count = len(student_BD)
    at_once = max(1, CHUNK // (count * max(count, student_BD.shape[1], teacher_BD.shape[1])))
    chunks = torch.arange(count, device=student_BD.device).split(at_once)
    if len(chunks) == 1:
        return _angle_errors(student_BD, teacher_BD, chunks[0]) / count**3
    errors = [
        checkpoint(_angle_errors, student_BD, teacher_BD, chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
    return torch.stack(errors).sum() / count**3


def _angle_errors(student_BD, teacher_BD, vertices_V):
    return F.smooth_l1_loss(angles(student_BD, vertices_V), angles(teacher_BD, vertices_V), reduction="sum")


def angles(points_BD, vertices_V) -> torch.Tensor:
    """Cosine of the angle at each vertex between every two points: (V, B, B)."""
    apart_VBD = points_BD - points_BD[vertices_V, None]
    length_VB1 = torch.linalg.vector_norm(apart_VBD, dim=2, keepdim=True)
    apart = length_VB1 > COINCIDE
    unit_VBD = torch.where(apart, apart_VBD, 0) / torch.where(apart, length_VB1, 1)
    return unit_VBD @ unit_VBD.mT
