"""`prunebench leaderboard`: records in, a table out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunebench.cli.published import load, published_options, stopping_at_gap

if TYPE_CHECKING:
    from prunebench.published import Published
    from prunebench.store import Record


@click.command("leaderboard")
@click.argument("paths", nargs=-1, type=click.Path(), metavar="RECORDS...")
@click.option("--out", type=click.Path(dir_okay=False), metavar="FILE.md", help="Write the table here, not to stdout.")
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE.png", help="Also plot accuracy against layers.")
@click.option("--check", "check_file", type=click.Path(), metavar="FILE.md", help="Exit with 1 if FILE is out of date.")
@click.option("--title", default=None, metavar="TEXT", help="Heading of the table.")
@click.option("--highlight", metavar="NAME", help="Tell in words where this strategy stands at each budget.")
@click.option(
    "--match",
    "quantity",
    metavar="bytes|latency|params",
    help="Compare methods of all kinds at equal achieved size or time, not at equal nominal sparsity.",
)
@click.option("--levels", metavar="0.9,0.75", help="With --match: shares of the dense model (default 0.9 down to 0.4).")
@published_options
@click.option("--json", "as_json", is_flag=True, help="Print ranks and scores as JSON.")
@click.pass_context
def leaderboard(
    context: click.Context,
    paths: tuple[str, ...],
    out: str | None,
    plot: str | None,
    check_file: str | None,
    title: str | None,
    highlight: str | None,
    quantity: str | None,
    levels: str | None,
    published: str | None,
    allow_gap: bool,
    as_json: bool,
) -> None:
    """Rank the strategies in RECORDS: run folders, folders of records, or record files.

    The same records always give the same text, so a committed table can be checked in CI:

      prunebench leaderboard runs/demo --out leaderboards/demo.md

      prunebench leaderboard runs/demo --check leaderboards/demo.md

    Zeroed weights, removed layers and smaller widths are ranked apart; at equal bytes on disk they may be compared:

      prunebench leaderboard runs/demo --match bytes --levels 0.9,0.75,0.5

    What papers print of the same weights or tasks can be shown beside, without a rank; without RECORDS it is all shown:

      prunebench leaderboard runs/demo --published

      prunebench leaderboard --published

    What `prunebench plan --calibration-draws` left beside the records is shown with them.
    """
    from prunebench.errors import UsageError
    from prunebench.robustness import load_robustness
    from prunebench.store import load_records

    if check_file and (out or plot or as_json):
        raise UsageError("--check only compares: leave out --out, --plot and --json")
    if quantity is None and levels is not None:
        raise UsageError("--levels goes with --match bytes, latency or params")
    figures = load(published, allow_gap)
    if not paths:
        if plot or highlight or quantity or allow_gap:
            raise UsageError("name RECORDS before the options: --published alone only shows published tables")
        _published_alone(context, figures, out, check_file, title, as_json)
        return
    if quantity is not None:
        if plot or highlight:
            raise UsageError("--match compares across kinds: leave out --plot and --highlight")
        if figures:
            raise UsageError("--match compares our own rows alone: leave out --published")
        _match(context, paths, quantity, levels, out, check_file, title, as_json)
        return
    with stopping_at_gap(context):
        options: dict[str, Any] = {"highlight": highlight, "robustness": load_robustness(paths)}
        options |= {"published": figures, "allow_gap": allow_gap} if figures is not None else {}
        _ranked(context, load_records(paths), options, out, plot, check_file, title, as_json)


def _ranked(
    context: click.Context,
    records: Sequence[Record],
    options: dict[str, Any],
    out: str | None,
    plot: str | None,
    check_file: str | None,
    title: str | None,
    as_json: bool,
) -> None:
    """The leaderboard itself."""
    import json

    from prunebench import leaderboard as tables

    highlight = options["highlight"]
    if check_file:
        _say_checked(context, tables.check(records, check_file, title, **options), check_file, len(records))
        return
    if out:
        tables.write(records, out, tables.TITLE if title is None else title, **options)
        click.echo(f"wrote {out}", err=True)
    if plot:
        from prunebench.report.curves import accuracy_curves

        click.echo(f"wrote {accuracy_curves(records, plot, highlight)}", err=True)
    if as_json:
        data = tables.as_data(records, highlight)
        if options.get("published") is not None:
            from prunebench.report.published import add_data

            add_data(data, records, options["published"], options["allow_gap"])
        click.echo(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))
    elif not out:
        click.echo(tables.build(records, tables.TITLE if title is None else title, **options), nl=False)


def _published_alone(
    context: click.Context,
    figures: Published | None,
    out: str | None,
    check_file: str | None,
    title: str | None,
    as_json: bool,
) -> None:
    """All published tables, without records."""
    import json

    from prunebench import jsonio
    from prunebench.errors import UsageError
    from prunebench.published import load_published
    from prunebench.report.markdown import read_back
    from prunebench.report.printed import listing, read_options

    text = read_back(check_file) if check_file else ""
    said = read_options(text).published
    if figures is None and said is not None:
        figures = load_published(said or None)
    if figures is None:
        raise UsageError("name RECORDS: run folders, folders of records, or record files; or --published alone")
    if check_file:
        if text != listing(figures, title):
            click.echo(f"{check_file} is out of date: write it again with --published --out {check_file}", err=True)
            context.exit(1)
        click.echo(f"{check_file} is up to date ({len(figures.papers)} published files)", err=True)
        return
    if out:
        jsonio.write_text(Path(out), listing(figures, title))
        click.echo(f"wrote {out}", err=True)
    if as_json:
        data = {name: paper.model_dump(mode="json") for name, paper in figures.papers.items()}
        click.echo(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))
    elif not out:
        click.echo(listing(figures, title), nl=False)


def _match(
    context: click.Context,
    paths: tuple[str, ...],
    quantity: str,
    levels: str | None,
    out: str | None,
    check_file: str | None,
    title: str | None,
    as_json: bool,
) -> None:
    """The comparison across kinds."""
    import json

    from prunebench import jsonio
    from prunebench.quantities import check_quantity, parse_levels
    from prunebench.report import match
    from prunebench.report.markdown import read_back
    from prunebench.store import load_records

    asked = check_quantity(quantity)
    at = parse_levels(levels)
    records = load_records(paths)
    if check_file:
        given = {"quantity": asked, "levels": at if levels is not None else None}
        same = match.is_match(read_back(check_file), records, title, **given)
        _say_checked(context, same, check_file, len(records))
        return
    if out:
        jsonio.write_text(Path(out), match.build(records, asked, at, title))
        click.echo(f"wrote {out}", err=True)
    if as_json:
        click.echo(json.dumps(match.as_data(records, asked, at), indent=1, ensure_ascii=False, allow_nan=False))
    elif not out:
        click.echo(match.build(records, asked, at, title), nl=False)


def _say_checked(context: click.Context, same: bool, file: str, count: int) -> None:
    """What came out of --check; ends with 1 where a file is not what its records say."""
    if not same:
        click.echo(f"{file} is out of date: write it again with --out {file}", err=True)
        context.exit(1)
    click.echo(f"{file} is up to date ({count} records)", err=True)
