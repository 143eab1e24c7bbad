"""The command line: a thin shell over the functions of the same names. Every command imports what it needs inside.

Settings come from a flag, else from `tinkit.toml` in the working directory, else from the function's default; what was
resolved is printed. A user's mistake ends with a message and an exit code (see `tinkit.errors`), never with a traceback,
unless TINKIT_DEBUG=1 asks for one.
"""

import os
import sys

import click

import tinkit
from tinkit import errors

EXTRAS = {  # import name -> the extra that brings it
    **dict.fromkeys(
        (
            "torch",
            "torchvision",
            "timm",
            "lightning_fabric",
            "onnx",
            "onnxscript",
            "safetensors",
            "sklearn",
            "jinja2",
            "PIL",
            "ml_dtypes",
        ),
        "host,cpu",
    ),
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt_rtx_bindings": "trt-check",
    "skimage": "demo",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(tinkit.__version__, prog_name="tinkit")
def cli():
    """Distil a large vision model into a small faithful student, export it, and carry the evidence along.

    \b
    tinkit distill photos/             teacher -> faithful student, no labels needed
    tinkit export --target trt-fp16    student -> a bundle that carries its own exam
    tinkit profile                     the exam and the latency on this machine, and a report

    Exit codes: 0 fine, 1 something to fix, 2 wrong command line, 3 a gate or budget failed, 4 could not judge.
    """


def _option(*names, **options):
    return click.option(*names, default=None, **options)


@cli.command()
@click.argument("images", required=False)
@_option("--teacher", help="timm name, efficientnet-lite0/1/2, or path.onnx  [efficientnet-lite2]")
@_option("--teacher-weights", help="a local weights file for a timm teacher (safetensors or state dict)")
@_option("--teacher-size", type=int, help="pixels the teacher sees  [its own]")
@_option(
    "--teacher-global",
    type=click.Choice(["own", "pooled"]),
    help="its class token or mean, or its pooled vector  [own]",
)
@_option("--teacher-mean", type=float, nargs=3, help="RGB mean in 0..1, ONNX teachers only  [ImageNet's]")
@_option("--teacher-std", type=float, nargs=3, help="RGB std in 0..1, ONNX teachers only  [ImageNet's]")
@_option("--student", help="timm name  [mobilenetv4_conv_small]")
@_option("--student-size", type=int, help="pixels the student sees  [its own]")
@_option("--student-weights", help="a file to start from  [random weights]")
@_option("--dim", type=int, help="width of the embedding  [384 for a CNN, a ViT's own]")
@_option("--method", help="see `tinkit list methods`; several with weights: tintem+dist:0.5  [tintem]")
@click.option("--option", "options", multiple=True, help="NAME=VALUE of the method, METHOD.NAME=VALUE; may be repeated")
@_option("--labels", help="folders (each picture's own), or a CSV of path,label  [none]")
@_option("--label-weight", type=float, help="of cross-entropy on labelled pictures  [the paper's]")
@_option("--logits/--no-logits", help="the terms over logits of methods that can do without  [no]")
@_option("--keep-head/--drop-head", help="ship the classifier with the student  [drop]")
@_option("--mapping", type=click.Choice(["pca", "learned", "learned-pca"]), help="teacher to student space  [pca]")
@_option("--center/--no-center", help="subtract the mean of the mapped teacher  [center]")
@_option("--cosines-weight", type=float, help="weight of a direct term on the batch's cosines  [1]")
@_option("--local/--no-local", help="the terms over local features  [local]")
@_option("--epochs", type=int, help="[50]")
@_option("--batch-size", type=int, help="[64]")
@_option("--views", type=int, help="stored views a picture; 0 with --online: a fresh one every epoch  [4]")
@_option("--scale-min", type=float, help="smallest share of a picture's area in a view  [0.6]")
@_option("--learning-rate", type=float, help="peak  [0.005 for a CNN, 0.0005 with attention]")
@_option("--weight-decay", type=float, help="[0.05]")
@_option("--warmup", type=float, help="share of the steps  [0.1]")
@_option("--clip", type=float, help="gradient norm, 0 = off  [1]")
@_option("--ema", type=float, help="decay of a running average of the weights, 0 = off  [0]")
@_option("--pca-pictures", type=int, help="pictures of the pre-pass of PCA, at most  [10000]")
@_option("--online/--cached", help="run the teacher live at every step  [cached]")
@_option("--store", help="folder of the teacher's features  [.stores beside the run]")
@_option("--store-dtype", type=click.Choice(["float16", "float32"]), help="[float16]")
@_option("--workers", type=int, help="loader processes  [one for two cores, at most 8]")
@_option("--compile/--no-compile", help="torch.compile the step  [no]")
@_option("--strict/--no-strict", help="an unreadable picture is an error  [no: skipped and listed]")
@_option("--seed", type=int, help="[0]")
@_option("--out", help="the run's folder  [runs/STUDENT-TIME]")
@click.option("--resume", is_flag=True, help="go on with the run in --out")
def distill(images, out, resume, **given):
    """Distil a teacher into a student from the pictures below IMAGES. No labels needed."""
    given = _given(given)
    if resume:
        settings = given
    else:
        settings = _with_file("distill", given, _of_distill())
        images = images or settings.pop("images", None)
        out = out or settings.pop("out", None)
        settings = {name: value for name, value in settings.items() if name not in ("images", "out")}
    result = tinkit.distill(images, out=out, resume=resume, **settings)
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
        click.echo(f"skipped  {result.skipped} unreadable files, listed in {os.path.join(result.run, 'run.json')}")


@cli.command()
@click.argument("run", required=False)
@_option("--target", help="a name from `tinkit list targets` or a .toml path  [onnx-fp32]")
@_option("--out", help="the bundle's folder  [RUN/bundle-TARGET]")
@_option("--exam", help="take the exam's pictures from this folder instead of the run's")
@click.option("--deploy-only", is_flag=True, default=None, help="leave the exam (your pictures) out of the bundle")
@_option("--heal/--no-heal", help="a failed gate sends a few nodes back to higher precision  [heal]")
@_option("--calibration", help="take the pictures for int8 calibration from this folder  [the run's own]")
@click.option("--check-build", is_flag=True, default=None, help="build it with TensorRT-RTX, without a GPU")
def export(run, **given):
    """Export RUN (default: the newest finished one) to a bundle and hold it against its host gate."""
    from tinkit.settings_file import EXPORT

    settings = _with_file("export", _given(given), EXPORT)
    result = tinkit.export(run, say=_say, **settings)
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
    _end(result.verdict, f"host gate of {result.target}, bundle in {result.bundle}")


@cli.command()
@click.argument("bundle", required=False)
@_option("--device", help="a name from `tinkit list devices` or a .toml path  [detected]")
@_option("--budget", help="limits such as p95_ms<5,peak_mb<300")
@_option("--out", help="the report's folder  [beside the bundle]")
@click.option("--require-target-runtime", is_flag=True, default=None, help="exit 4 rather than rehearse elsewhere")
def profile(bundle, budget, **given):
    """Sit the exam and measure BUNDLE (default: the newest) on this machine, and write the report."""
    from tinkit.budget import check_budget, parse_budget
    from tinkit.settings_file import PROFILE, SETTINGS_FILE

    settings = _with_file("profile", _given(given), PROFILE)
    limits = settings.pop("budget", None)
    if budget is not None:
        limits = parse_budget(budget)
    elif limits is not None:
        check_budget(limits, SETTINGS_FILE)
    result = tinkit.profile(bundle, budget=limits, say=_say, **settings)
    for limit in result.budgets:
        measured = "-" if limit["measured"] is None else f"{limit['measured']:g}"
        click.echo(f"budget   {limit['name']} {measured} of {limit['limit']:g}: {limit['verdict']}")
    _write_html(result.path)
    _end(result.verdict, result.title)
    unjudged = result.verdict == "not judged" or any(limit["verdict"] == "not judged" for limit in result.budgets)
    if unjudged and not result.rehearsal:
        click.get_current_context().exit(errors.EXIT_NO_VERDICT)


@cli.command()
@click.argument("source", required=False)
@_option("--out", help="where report.html goes  [beside report.json]")
def report(source, out):
    """Write report.html for SOURCE, a report's folder or report.json (default: the newest)."""
    click.echo(f"report   {tinkit.report(source, out=out).path}")


@cli.command(name="list")
@click.argument("what", type=click.Choice(["methods", "targets", "devices", "teachers", "students"]))
def list_(what):
    """What there is: methods, targets, devices, teachers or students."""
    from tinkit.host import listing

    _table(*listing.rows(what))


@cli.command()
def doctor():
    """What this machine can do, what is missing, and the command that brings it."""
    from tinkit.host import doctor as examination

    _table(("what", "state", "detail", "to get it"), examination.examine())


def main(arguments=None):
    """The entry point: runs the command and turns errors into messages and exit codes."""
    try:
        code = cli.main(arguments, prog_name="tinkit", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else errors.EXIT_OK)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("Stopped.", 130)
    except errors.TinkitError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f'{error.name} is not installed.\n  next:  pip install "tinkit[{extra}]"', errors.EXIT_USER)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(str(errors.from_os_error(error, "the command")), errors.EXIT_USER)


def _fail(message, code):
    if os.environ.get("TINKIT_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    click.echo(f"tinkit: {message}", err=True)
    sys.exit(code)


def _given(values):
    """Only what was said on the command line."""
    return {name: value for name, value in values.items() if value is not None and value != ()}


def _with_file(section, given, kinds):
    """Flags over `tinkit.toml`; what the file says is printed."""
    from tinkit.settings_file import SETTINGS_FILE, read_section

    values = read_section(section, kinds)
    if values:
        _say(f"settings from {SETTINGS_FILE}: " + ", ".join(f"{name} = {value}" for name, value in values.items()))
    return {**values, **given}


def _of_distill():
    """Its keys in the settings file; their types are checked where they are used."""
    from dataclasses import fields

    from tinkit.host.settings import Settings

    return dict.fromkeys((*(field.name for field in fields(Settings)), "images", "out"), object)


def _say(line):
    click.echo(line, err=True)


def _write_html(path):
    """The page needs the host's parts; a board has report.json all the same."""
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        click.echo(f"report   {path}")
        click.echo('note     report.html needs pip install "tinkit[host]"')
        return
    click.echo(f"report   {tinkit.report(path).path}")


def _table(header, rows):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # plain: "tinkit[host]" is no markup
    Console().print(table)


def _end(verdict, what):
    click.echo(f"{verdict}: {what}")
    if verdict == "failed":
        click.get_current_context().exit(errors.EXIT_GATE)


if __name__ == "__main__":
    main()
