"""One HTML file per run folder, without a network, a script or a reference to anything outside itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nni_bayes_nas.experiment.record import write_text
from nni_bayes_nas.report import compression, family, posterior, prediction, robustness, selection, tables, times
from nni_bayes_nas.report.figures import Plot, accuracy_plot, curve_plot, retrain_plot, search_plots
from nni_bayes_nas.report.picture import draw_architecture
from nni_bayes_nas.report.read import RunFolder, read_run
from nni_bayes_nas.report.weights import weight_maps


@dataclass(frozen=True)
class Figure:
    """A plot whose drawing goes into the page unescaped."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Picture:
    """One distinct architecture: its drawing and what is known about it."""

    name: str
    origin: str
    facts: str
    random: bool
    svg: Markup


def write_report(folders: list[Path]) -> list[Path]:
    """Write `report.html` into each run folder, from the files in that folder alone.

    Works while the run goes on, after it failed and where files are missing; what is missing is said in the page.

    Args:
        folders: Run folders.

    Returns:
        The written files, in the order of the folders.

    Raises:
        ConfigError: A folder is no run folder or a file in it cannot be read; then nothing is written anywhere.
    """
    pages = [(folder / "report.html", render_report(read_run(folder))) for folder in map(Path, folders)]
    for path, page in pages:
        # Whoever has the report open while the run goes on never loads half a page.
        write_text(path, page)
    return [path for path, _ in pages]


def render_report(run: RunFolder) -> str:
    """The page of one run."""
    environment = Environment(
        # The template escapes everything; only drawings made by this package are `Markup`.
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = run.setting("report", "title") or run.setting("experiment", "name") or run.path.name or "nni-bayes-nas"
    size_plots = [plot for plot in (accuracy_plot(run), curve_plot(run)) if plot is not None]
    learning_plots = [*search_plots(run), *compression.learning_plots(run)]
    learning_plots += [plot for plot in (retrain_plot(run),) if plot is not None]
    known_columns, known_rows = family.known_before(run)
    time_columns, time_rows = times.time_table(run)
    attack_columns, attack_rows = robustness.attack_table(run)
    attack_plot = robustness.attack_plot(run)
    cut_columns, cut_rows = compression.curve_table(run)
    return environment.get_template("report.html").render(
        title=str(title),
        score=run.score,
        folder=run.path.name,
        status=str(run.summary.get("status", "unknown")),
        sentences=compression.headline(run)
        or prediction.headline(run)
        or [*tables.headline(run), *filter(None, [family.found_ranges(run)]), *family.stopped(run)],
        tiles=tables.tiles(run),
        failures=run.failures,
        failed_count=(run.summary.get("experiment") or {}).get("trials_failed") or 0,
        size_figures=[_figure(plot) for plot in size_plots],
        has_curve=bool(run.curves),
        known_columns=known_columns,
        known_rows=known_rows,
        known_sentences=family.explained(run),
        known_text_columns=family.TEXT_COLUMNS,
        scale_note=family.scale_note(run),
        latency_note=family.latency_note(run),
        learning_figures=[_figure(plot) for plot in learning_plots],
        weights=[
            (trial, maps) for trial in run.trials("search") if (maps := [Markup(m) for m in weight_maps(run, trial)])
        ],
        posteriors=posterior.posteriors(run),
        choice_columns=posterior.CHOICE_COLUMNS,
        top_columns=posterior.TOP_COLUMNS,
        posterior_text_columns=posterior.TEXT_COLUMNS,
        smallest_good=posterior.smallest_good(run),
        refinements=posterior.refinements(run),
        refined_columns=posterior.REFINED_COLUMNS,
        compressed_columns=compression.COLUMNS,
        compressed_rows=compression.table(run),
        compressed_sentence=compression.sentence(run),
        compressed_text_columns=compression.TEXT_COLUMNS,
        compressed_figures=[_figure(plot) for plot in compression.plots(run)],
        predicted_columns=prediction.COLUMNS,
        predicted_rows=prediction.table(run),
        predicted_text_columns=prediction.TEXT_COLUMNS,
        predicted_figures=[_figure(plot) for plot in prediction.plots(run)],
        predicted_sentences=prediction.sentences(run),
        error_columns=prediction.ERROR_COLUMNS,
        error_rows=prediction.error_table(run),
        cut_columns=cut_columns,
        cut_rows=cut_rows,
        selection_columns=selection.COLUMNS,
        selection_rows=selection.table(run),
        selection_text_columns=selection.TEXT_COLUMNS,
        layer_columns=selection.LAYER_COLUMNS,
        freeze_maps=selection.maps(run),
        attack_columns=attack_columns,
        attack_rows=attack_rows,
        attack_figures=[_figure(attack_plot)] if attack_plot else [],
        attack_notes=robustness.notes(run),
        score_columns=robustness.SCORE_COLUMNS,
        score_rows=robustness.score_rows(run),
        robust_text_columns=robustness.TEXT_COLUMNS,
        pictures=_pictures(run),
        n_architectures=len(run.architectures),
        architecture_columns=tables.architecture_columns(run),
        architecture_rows=tables.architecture_rows(run),
        search_columns=tables.SEARCH_COLUMNS,
        search_rows=tables.search_rows(run),
        time_columns=time_columns,
        time_rows=time_rows,
        time_text_columns=times.TEXT_COLUMNS,
        time_sentence=times.time_sentence(run),
        seeds_text=tables.seeds_text(run),
        commands=tables.repeat_commands(run),
        seeds=tables.seed_rows(run),
        environment=tables.environment_rows(run),
        config_text=run.config_text,
    )


def _figure(plot: Plot) -> Figure:
    return Figure(plot.title, Markup(plot.svg), plot.caption)


def _pictures(run: RunFolder) -> list[Picture]:
    pictures = []
    for group in tables.distinct(run.architectures):
        first = group[0]
        facts = [f"{tables.count(first.get('params'))} parameters", f"{tables.macs(first.get('macs'))} MACs"]
        tested = tables.retrained(first, run.score.test)
        shown = tables.scored(tested, run.score.percent)
        facts.append(f"test {shown}" if tested.n else "not retrained")
        name = ", ".join(str(row.get("id", "?")) for row in group)
        svg = Markup(draw_architecture(first.get("choices") or {}))
        random = all(row.get("origin") == "random" for row in group)
        pictures.append(Picture(name, tables.origin_text(group), " · ".join(facts), random, svg))
    return pictures
