"""Our losses against torchdistill's, values and gradients, on random float64 tensors: an independent second writing.

torchdistill is no dependency: its wheel (pure Python, 95 kB) is fetched with pip, never installed, and only its loss
modules are imported from it, which need torch alone. Without a package registry the tests skip and say why.
Every row of COMPARED gives (ours, theirs, student's tensor); where the two differ on purpose, the row says how and makes
them agree. Not compared: SRD, the forerunner of VkD by its author, is another loss (a logarithm of a sum of powers).
"""

import importlib
import subprocess
import sys

import pytest
import torch
from method_parts import batch, pair
from torch.nn import functional as F

from tinkit.host.distill.pair import Side, Tap
from tinkit.host.methods import dist, pkt
from tinkit.host.methods.at import AT
from tinkit.host.methods.crd import CRD
from tinkit.host.methods.dist import DIST
from tinkit.host.methods.kd import KD
from tinkit.host.methods.pkt import PKT
from tinkit.host.methods.rkd import RKD
from tinkit.host.methods.sp import SP

pytestmark = pytest.mark.slow

PINNED = "torchdistill==1.1.5"
MAPS = pair(  # maps of one grid, as torchdistill wants them
    student=Side(5, 5, (2, 3), (Tap("s1", 3, (4, 6)), Tap("s2", 4, (2, 3)))),
    teacher=Side(7, 7, (2, 3), (Tap("t1", 5, (4, 6)), Tap("t2", 6, (2, 3)))),
)


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """torchdistill.losses.mid_level out of the wheel; gone from sys.path and sys.modules afterwards."""
    folder = tmp_path_factory.mktemp("torchdistill")
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", folder, PINNED]
    try:
        done = subprocess.run(fetch, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip download {PINNED} took more than two minutes")
    if done.returncode:
        pytest.skip(f"{PINNED} could not be fetched: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    (wheel,) = folder.glob("*.whl")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(wheel)
        yield importlib.import_module("torchdistill.losses.mid_level")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchdistill"]:
            del sys.modules[name]


def outputs(**tensors):
    """What torchdistill calls an io_dict: {module: {"output": tensor}}."""
    return {name: {"output": tensor} for name, tensor in tensors.items()}


def logits(one):
    return outputs(fc=one.student.logits_BC), outputs(fc=one.teacher.logits_BC)


def global_vectors(one):
    return outputs(fc=one.student.global_BD), outputs(fc=one.teacher.global_BD)


ENDS = ("fc", "output", "fc", "output")


def kd_with_labels(losses, patch):
    """Our KD with its weight of the labels is theirs with alpha 0.1."""
    one = batch(pair(), labels=True)
    theirs = losses.KDLoss(*ENDS, temperature=4.0, alpha=0.1)(*logits(one), one.labels_B)
    entropy = F.cross_entropy(one.student.logits_BC, one.labels_B)
    return KD(pair())(one)["loss"] + KD.label_weight * entropy, theirs, one.student.logits_BC


def kd_without_labels(losses, patch):
    """Without labels theirs has neither weight nor tau^2; ours has both, labels or not."""
    one = batch(pair())
    theirs = losses.KDLoss(*ENDS, temperature=4.0, alpha=0.1)(*logits(one))
    return KD(pair(), tau=4.0, loss_weight=1 / 16)(one)["loss"], theirs, one.student.logits_BC


def dist_at(tau):
    def dist_(losses, patch):
        """We add eps = 1e-8 to the product of the norms (as released), theirs clamps each norm: equal with eps 0."""
        patch.setattr(dist, "EPS", 0.0)
        one = batch(pair())
        theirs = losses.DISTLoss(*ENDS, beta=0.5, gamma=3.0, tau=tau)(*logits(one))
        ours = DIST(pair(), beta=0.5, gamma=3.0, tau=tau, loss_weight=1.0)(one)["loss"]
        return ours, theirs, one.student.logits_BC

    dist_.__name__ = f"dist_{tau:.0f}"
    return dist_


def pkt_(losses, patch):
    """Theirs has no weight: ours before weighting."""
    one = batch(pair())
    theirs = losses.PKTLoss(*ENDS, eps=pkt.EPS)(*global_vectors(one))
    return PKT(pair())(one)["divergence"], theirs, one.student.global_BD


def rkd_(losses, patch):
    one = batch(pair())
    theirs = losses.RKDLoss("fc", "fc", dist_factor=25.0, angle_factor=50.0, reduction="mean")(*global_vectors(one))
    return RKD(pair())(one)["loss"], theirs, one.student.global_BD


def at_(losses, patch):
    """Their mode "code" (RepDistiller's); the weight 1000 is ours to give."""
    one = batch(MAPS)
    ends = {
        f"pair{k}": {"student": {"path": f"s{k}", "io": "output"}, "teacher": {"path": f"t{k}", "io": "output"}}
        for k in (1, 2)
    }
    theirs = losses.ATLoss(ends, mode="code")(outputs(**one.student.taps), outputs(**one.teacher.taps))
    return AT(MAPS)(one)["attention"], theirs, one.student.taps["s1"]


def sp_(losses, patch):
    """Theirs divides the rows of the similarities by their L1 norm, ours by their L2 norm, as the paper writes."""
    patch.setattr(losses, "normalize", lambda rows, p: F.normalize(rows, p=2, dim=1))
    one = batch(pair())
    theirs = losses.SPKDLoss("fc", "fc", reduction="batchmean")(*global_vectors(one))
    return SP(pair(), features="global")(one)["similarity"], theirs, one.student.global_BD


def crd_(losses, patch):
    """All others as negatives and one bank for both. Theirs has an eps in a numerator's logarithm: a constant here."""
    one = batch(pair(pictures=20))
    torch.manual_seed(0)
    ours = CRD(pair(pictures=20), embed_dim=5).double()
    theirs = losses.CRDLoss("norm", "empty", "norm", 5, 20, num_negative_samples=19, num_samples=20).double()
    theirs.params[1] = 0.07  # was rounded to float32
    theirs.memory_v1.copy_(ours.bank_student_NE)
    theirs.memory_v2.copy_(ours.bank_teacher_NE)
    chosen = torch.stack([torch.tensor([i, *(j for j in range(20) if j != i)]) for i in range(len(one.index_B))])
    student = outputs(norm=F.normalize(ours.embed_student(one.student.global_BD), dim=1))
    student["empty"] = {"input": {"pos_idx": one.index_B, "contrast_idx": chosen}}
    with torch.no_grad():
        teacher = outputs(norm=F.normalize(ours.embed_teacher(one.teacher.global_BD), dim=1))
    constant = 2 * 19 * torch.log(torch.tensor(1 + 1e-7 / (19 / 20), dtype=torch.float64))
    parts = ours(one)
    return parts["student"] + parts["teacher"] + constant, theirs(student, teacher).sum(), one.student.global_BD


COMPARED = (kd_with_labels, kd_without_labels, dist_at(1.0), dist_at(4.0), pkt_, rkd_, at_, sp_, crd_)


@pytest.mark.parametrize("compared", COMPARED, ids=lambda row: row.__name__.strip("_"))
def test_ours_is_torchdistills(losses, compared, monkeypatch):
    ours, theirs, student = compared(losses, monkeypatch)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    slopes = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, theirs))
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-12)


def test_without_the_adjustment_dist_differs_by_eps_and_sp_by_much(losses):
    """The differences that the rows take away are there: the adjustments do not hide a mistake of ours."""
    one = batch(pair())
    theirs = losses.DISTLoss(*ENDS)(*logits(one))
    ours = DIST(pair(), loss_weight=1.0)(one)["loss"]
    assert 1e-9 < abs(ours - theirs) < 1e-5
    l1 = losses.SPKDLoss("fc", "fc", reduction="batchmean")(*global_vectors(one))
    assert abs(SP(pair(), features="global")(one)["similarity"] / l1 - 1) > 0.1
