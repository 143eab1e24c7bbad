"""`tinkit distill` and `tinkit export`: from pictures to a bundle."""

import os

import click

import tinkit
from tinkit.cli.group import cli, end, only_given, option, say, with_file


@cli.command()
@click.argument("images", required=False)
@option("--teacher", help="timm name, efficientnet-lite0/1/2, or path.onnx  [efficientnet-lite2]")
@option("--teacher-weights", help="a local weights file for a timm teacher (safetensors or state dict)")
@option("--teacher-size", type=int, help="pixels the teacher sees  [its own]")
@option(
    "--teacher-global",
    type=click.Choice(["own", "pooled"]),
    help="its class token or mean, or its pooled vector  [own]",
)
@option("--teacher-mean", type=float, nargs=3, help="RGB mean in 0..1, ONNX teachers only  [ImageNet's]")
@option("--teacher-std", type=float, nargs=3, help="RGB std in 0..1, ONNX teachers only  [ImageNet's]")
@option("--student", help="timm name  [mobilenetv4_conv_small]")
@option("--student-size", type=int, help="pixels the student sees  [its own]")
@option("--student-weights", help="a file to start from  [random weights]")
@option("--dim", type=int, help="width of the embedding  [384 for a CNN, a ViT's own]")
@option("--method", help="see `tinkit list methods`; several with weights: tintem+dist:0.5  [tintem]")
@click.option("--option", "options", multiple=True, help="NAME=VALUE of the method, METHOD.NAME=VALUE; may be repeated")
@option("--labels", help="folders (each picture's own), or a CSV of path,label  [none]")
@option("--label-weight", type=float, help="of cross-entropy on labelled pictures  [the paper's]")
@option("--logits/--no-logits", help="the terms over logits of methods that can do without  [no]")
@option("--keep-head/--drop-head", help="ship the classifier with the student  [drop]")
@option("--mapping", type=click.Choice(["pca", "learned", "learned-pca"]), help="teacher to student space  [pca]")
@option("--center/--no-center", help="subtract the mean of the mapped teacher  [center]")
@option("--cosines-weight", type=float, help="weight of a direct term on the batch's cosines  [1]")
@option("--local/--no-local", help="the terms over local features  [local]")
@option("--epochs", type=int, help="[50]")
@option("--batch-size", type=int, help="[64]")
@option("--views", type=int, help="stored views a picture; 0 with --online: a fresh one every epoch  [4]")
@option("--scale-min", type=float, help="smallest share of a picture's area in a view  [0.6]")
@option("--learning-rate", type=float, help="peak  [0.005 for a CNN, 0.0005 with attention]")
@option("--weight-decay", type=float, help="[0.05]")
@option("--warmup", type=float, help="share of the steps  [0.1]")
@option("--clip", type=float, help="gradient norm, 0 = off  [1]")
@option("--ema", type=float, help="decay of a running average of the weights, 0 = off  [0]")
@option("--pca-pictures", type=int, help="pictures of the pre-pass of PCA, at most  [10000]")
@option("--online/--cached", help="run the teacher live at every step  [cached]")
@option("--store", help="folder of the teacher's features  [.stores beside the run]")
@option("--store-dtype", type=click.Choice(["float16", "float32", "int8"]), help="[float16]")
@option("--store-grid", type=int, help="keep local features pooled to so many rows and columns  [the teacher's grid]")
@option("--store-limit-gb", type=float, help="above it, stores that were used longest ago are removed  [no limit]")
@option(
    "--decoded-cache-gb", type=float, help="decoded pictures kept for the run, 0 = none  [a quarter of what is free]"
)
@option(
    "--decoder", type=click.Choice(["pillow", "torchvision"]), help="of JPEGs; torchvision gives other pixels  [pillow]"
)
@option(
    "--scan",
    type=click.Choice(["auto", "full", "quick"]),
    help="full: try every picture first; auto: up to 100,000  [auto]",
)
@option("--workers", type=int, help="loader processes  [one for two cores, at most 8]")
@option("--devices", type=int, help="processes of this machine, one for each GPU  [1]")
@option("--num-nodes", type=int, help="machines, started by torchrun or SLURM  [1]")
@option("--sync-batchnorm/--no-sync-batchnorm", help="one batch norm over all devices  [sync]")
@option(
    "--micro-batch", type=int, help="pictures at once; the loss still sees the whole batch  [all, less on a full GPU]"
)
@option("--teacher-batch", type=int, help="pictures at once through a live teacher  [the batch]")
@option(
    "--compile",
    type=click.Choice(["auto", "off", "on", "cuda-graphs"]),
    help="torch.compile the student; auto is off  [auto]",
)
@option("--checkpoint-minutes", type=float, help="what a power cut may cost  [10]")
@option("--keep-checkpoints", type=int, help="[2]")
@option("--strict/--no-strict", help="an unreadable picture is an error  [no: skipped and listed]")
@option("--seed", type=int, help="[0]")
@option("--out", help="the run's folder  [runs/STUDENT-TIME]")
@click.option("--resume", is_flag=True, help="go on with the run in --out")
@click.option("--dry-run", is_flag=True, help="tell what it will take: time, disk, memory; write nothing")
def distill(images, out, resume, dry_run, **given):
    """Distil a teacher into a student from IMAGES. No labels needed.

    IMAGES is a folder of pictures, a .tar or pattern of WebDataset shards (data-{000..099}.tar), a .txt or .csv list, or
    local Hugging Face data (.parquet, .arrow, a folder of these).
    """
    given = only_given(given)
    if resume:
        settings = given
    else:
        settings = with_file("distill", given, _of_distill())
        images = images or settings.pop("images", None)
        out = out or settings.pop("out", None)
        settings = {name: value for name, value in settings.items() if name not in ("images", "out")}
    if dry_run:
        for line in tinkit.estimate(images, out, resume, **settings).in_words():
            click.echo(line)
        return
    result = tinkit.distill(images, out=out, resume=resume, **settings)
    from tinkit.host.distill.ranks import speaks

    if not speaks():
        return
    click.echo(f"run      {result.run}")
    click.echo(
        f"student  {result.student}, {result.epochs} epochs on {result.pictures} pictures, {result.seconds:.0f} s"
    )
    found = result.metrics
    if "cosine_mean" in found:
        seen = f"cosine to the mapped teacher {found['cosine_mean']:.3f} (p1 {found['cosine_p1']:.3f})"
    elif "fitted_cosine_mean" in found:
        seen = f"cosine to a mapping fitted afterwards {found['fitted_cosine_mean']:.3f}"
    else:
        seen = "no mapping"
    click.echo(
        f"held out {seen}, "
        f"share of the {found['neighbours']} nearest neighbours in common with the teacher {found['neighbour_overlap']:.2f}"
    )
    if result.skipped:
        click.echo(f"skipped  {result.skipped} unreadable files, listed in {os.path.join(result.run, 'skipped.jsonl')}")


@cli.command()
@click.argument("run", required=False)
@option("--target", help="a name from `tinkit list targets` or a .toml path  [onnx-fp32]")
@option("--out", help="the bundle's folder  [RUN/bundle-TARGET]")
@option("--exam", help="take the exam's pictures from this folder instead of the run's")
@click.option("--deploy-only", is_flag=True, default=None, help="leave the exam (your pictures) out of the bundle")
@option("--heal/--no-heal", help="a failed gate sends a few nodes back to higher precision  [heal]")
@option("--head", help="ship a head of `tinkit head`, by name or the path of its .json")
@option("--calibration", help="take the pictures for int8 calibration from this folder  [the run's own]")
@click.option("--check-build", is_flag=True, default=None, help="build it with TensorRT-RTX, without a GPU")
def export(run, **given):
    """Export RUN (default: the newest finished one) to a bundle and hold it against its host gate."""
    from tinkit.settings_file import EXPORT

    settings = with_file("export", only_given(given), EXPORT)
    result = tinkit.export(run, say=say, **settings)
    for hop in result.hops:
        click.echo(
            f"{hop.verdict:<10} {hop.hop} [{hop.output}]: cosine mean {hop.cosine_mean:.6f}, worst {hop.cosine_min:.6f}"
            + (f"; {hop.reason}" if hop.verdict == "failed" else "")
        )
    for found in result.healing.values():
        for node in found["kept"]:
            click.echo(f"healed     {node['node']} ({node['op_type']}), {node['macs']:.2%} of the MACs")
        for node in [] if found["healed"] else found["ranking"]:
            added = "overflows" if node["added"] == float("inf") else f"adds a relative error of {node['added']:.3g}"
            click.echo(f"suspect    {node['node']} ({node['op_type']}), {added}")
    click.echo(f"{result.truth.verdict:<10} precision: {result.truth.reason}")
    end(result.verdict, f"host gate of {result.target}, bundle in {result.bundle}")


def _of_distill():
    """Its keys in the settings file; their types are checked where they are used."""
    from dataclasses import fields

    from tinkit.host.distill.settings import Settings

    return dict.fromkeys((*(field.name for field in fields(Settings)), "images", "out"), object)
