"""`tinkit evaluate`, `select`, `head` and `predict`: what compression did, and what to do with the student."""

import click

import tinkit
from tinkit import errors
from tinkit.cli.group import cli, end, only_given, option, say, table, with_file


@cli.command()
@click.argument("subject", metavar="[RUN|BUNDLE]", required=False)
@option("--data", help="pictures, in class folders where there are labels  [the run's own]")
@option("--labels", help="folders, a CSV of path,label, or none  [folders, where there are two]")
@option("--ood", multiple=True, help="a folder of strange pictures; near:DIR and far:DIR group them; repeat")
@option("--domains", multiple=True, help="a folder of the same classes in another style; repeat")
@option("--masks", help="a folder of masks, a PNG for each picture of --data")
@option("--corruptions/--no-corruptions", help="the 15 standard corruptions at 5 severities  [no: it takes minutes]")
@option("--corruption-pictures", type=int, help="test pictures that are corrupted  [200]")
@option("--dense/--no-dense", help="similarity maps of local features  [dense]")
@option("--limit", type=int, help="at most so many pictures of each folder, drawn by content")
@option("--budget", help="what the student may lose: auroc>-0.01,corruption>-2%,agreement>0.9; broken: exit code 3")
@option("--out", help="where evaluation.json goes  [RUN/evaluation]")
@click.option("--require-target-runtime", is_flag=True, default=None, help="exit with 4 instead of rehearsing a bundle")
@option("--workers", type=int, help="loader processes  [one for two cores, at most 8]")
@option("--seed", type=int, help="[0]")
def evaluate(subject, **given):
    """Compare RUN's student, or BUNDLE in its runtime, with the teacher on pictures (default: the newest finished run).

    A budget with a sign is about the change against the teacher, one without about the student's own value.
    """
    from tinkit.host.report.evaluation import evaluation_page
    from tinkit.settings_file import EVALUATE

    settings = with_file("evaluate", only_given(given), EVALUATE)
    result = tinkit.evaluate(subject, **settings)
    table(("measure", "teacher", "student", "95 %", "change, 95 %"), [_row(measure) for measure in result.measures])
    for note in result.all_notes():
        click.echo(f"note     {note}")
    for rule in result.budget:
        click.echo(f"{rule['verdict']:<10} {rule['rule']}: {rule['reason']}")
    click.echo(f"evidence {result.path}")
    click.echo(f"report   {evaluation_page(result.path)}")
    if result.budget:
        end(result.verdict, result.title)
        if result.verdict == "not judged":
            click.get_current_context().exit(errors.EXIT_NO_VERDICT)


def _row(measure):
    """Values of one measure; an arrow says which way is better."""
    ends = [
        " to ".join(form.format(bound) for bound in bounds)
        for form, bounds in (("{:.3f}", measure.interval), ("{:+.3f}", measure.change))
    ]
    teacher = "" if measure.teacher is None else f"{measure.teacher:.3f}"
    return f"{measure.name} {'↑' if measure.better == 'higher' else '↓'}", teacher, f"{measure.student:.3f}", *ends


@cli.command()
@click.argument("images", required=False)
@option("--budget", type=int, help="how many pictures to choose")
@option("--teacher", help="features of this teacher  [efficientnet-lite2]")
@option("--teacher-weights", help="a local weights file for a timm teacher")
@option("--teacher-size", type=int, help="pixels the teacher sees  [its own]")
@option("--run", help="features of this run's student instead")
@option(
    "--method",
    type=click.Choice(["k-medoids", "k-centre", "mini-max", "maxi-min", "random"]),
    help="how to choose  [k-medoids]",
)
@option("--space", type=click.Choice(["t-sne", "features"]), help="choose on a map or on the features  [t-sne]")
@option("--metric", type=click.Choice(["cosine", "euclidean"]), help="of the features  [cosine]")
@option("--perplexity", type=float, help="of the map  [40]")
@option("--labels", help="folders, or a CSV of path,label: only counts the classes that were found")
@option("--seed", type=int, help="[0]")
@option("--store", help="folder of the features  [.stores beside --out]")
@option("--workers", type=int, help="loader processes  [one for two cores, at most 8]")
@option("--strict/--no-strict", help="an unreadable picture is an error  [no: skipped and said]")
@option("--out", help="a new folder  [runs/selection-TIME]")
def select(images, **given):
    """Choose which pictures below IMAGES to label first (Cold PAWS): a CSV, a folder of links and a contact sheet."""
    from tinkit.settings_file import SELECT

    settings = with_file("select", only_given(given), SELECT)
    images = images or settings.pop("images", None)
    settings.pop("images", None)
    for needed, value in (("IMAGES", images), ("--budget", settings.get("budget"))):
        if value is None:
            raise click.UsageError(f"{needed} is missing: tinkit select IMAGES --budget 40")
    result = tinkit.select(images, **settings)
    for note in result.notes:
        click.echo(f"note     {note}")
    if result.classes:
        found = result.classes
        click.echo(
            f"classes  {found['found']} of {found['of']}; as many random pictures find {found['random']:.1f} on average"
        )
    click.echo(f"chosen   {result.path}")
    click.echo(f"sheet    {result.page}")


@cli.command()
@click.argument("run", required=False)
@option("--data", help="labelled pictures, in class folders  [the run's own]")
@option("--labels", help="folders, or a CSV of path,label  [folders]")
@option("--name", help="under which the head is kept  [head]")
@option("--prompts", help="an .npz of class names and their text vectors by the teacher's text tower: a zero-shot head")
@option("--from", "source", type=click.Choice(["teacher", "student"]), help="whose features it learns on  [the better]")
@option("--min-agreement", type=float, help="with the teacher's own zero-shot answers, else it is refused  [0.8]")
@option("--limit", type=int, help="at most so many pictures, drawn by content")
@option("--out", help="the folder of heads  [RUN/heads]")
@option("--workers", type=int, help="loader processes  [one for two cores, at most 8]")
@option("--seed", type=int, help="[0]")
def head(run, **given):
    """Fit a linear head for RUN's student on a few labelled pictures; ship it with tinkit export --head NAME.

    Fitted on the mapped teacher's features and on the student's, and kept from where it does better on the student.
    """
    from tinkit.settings_file import HEAD

    settings = with_file("head", only_given(given), HEAD)
    if "from" in settings:  # the file says it as the flag does, and the flag wins
        settings.setdefault("source", settings.pop("from"))
    settings.pop("from", None)
    result = tinkit.head(run, **settings)
    for note in result.notes:
        click.echo(f"note     {note}")
    click.echo(f"head     {result.path}")
    if result.verdict == "not judged":  # from labels: there is no gate, the better one is kept
        click.echo(f"kept     {result.reason}")
        return
    end(result.verdict, result.reason)


@cli.command()
@click.argument("bundle")
@click.argument("pictures", nargs=-1, required=True)
@option("--top", type=int, help="so many classes of each picture  [3]")
@click.option("--json", "as_lines", is_flag=True, help="a line of JSON for each picture")
@option("--threads", type=int, help="[1]")
@option("--runtime", type=click.Choice(["onnxruntime", "openvino", "tensorrt"]), help="[the target's own]")
def predict(bundle, pictures, as_lines, **given):
    """What BUNDLE says about PICTURES, files or folders: classes where it ships a head. Needs no torch."""
    from tinkit.device import predict as device

    answers = device.predict(bundle, pictures, say=say, **only_given(given))
    told = device.as_json if as_lines else device.in_words
    click.get_current_context().exit(device.show(answers, told))
