"""A study: each variant tuned by equally many trials on held-out training classes, then measured on the test classes.

    idml-zoo study recipes/studies/cub2010.yaml --jobs 2     # started again, it goes on
    idml-zoo study recipes/studies/cub2010.yaml --dry-run    # what is done, chosen and missing

The keys of a study's file:

- `recipe` is trained, with the keys of `set` changed.
- `variants` are tuned and measured. Losses under `scout` get `scout.trials` each. The best of them joins the variants,
  plain and introspective without mixup, so that the two differ in the metric alone.
- `trials` are the settings to try, for each similarity that a loss sees: `cosine` and `introspective`. `released` takes
  those of cosine, for it has no τ. The best trial has the highest `choose_by`.
- `seeds` are the seeds to measure with. `measure` says what is measured, and `name` is the row.
- `controls` are variants with settings that no trial chose, for a question that the tuned rows leave open. They are
  measured last, with every seed but without `measure`, under a name that ends in `control`.

Trials hold out training classes and leave the test classes closed; their results go to <leaderboard>/validation. A
variant is measured when its trials are done: with the best of them, at the last epoch, once for each seed. A trial is
named like its row, with its settings in the place of `tuned`. A trial fails where the network collapsed or the loss was
not finite. It counts as tried, is never chosen, and <leaderboard>/validation/lost says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from idml_zoo.registry import nearest
from idml_zoo.results import Result, read_results
from idml_zoo.studies.sweep import PlannedRun, Recipes, find_result, identity, recipes_of, run_all
from idml_zoo.training.config import Config, ConfigError, load_config
from idml_zoo.training.failed_trials import FailedTrial, read_failed_trials
from idml_zoo.training.recipes import find_recipe, recipes_folder
from idml_zoo.variants import variants


@dataclass(frozen=True)
class Study:
    """The content of a study's file; the module describes the keys."""

    recipe: str
    variants: list[str]
    trials: dict[str, list[dict[str, Any]]]
    seeds: list[int]
    set: dict[str, Any] = field(default_factory=dict)
    measure: dict[str, Any] = field(default_factory=dict)
    scout: dict[str, Any] = field(default_factory=dict)
    controls: list[dict[str, Any]] = field(default_factory=list)
    choose_by: str = "map@r"
    name: str = "{variant}-{backbone}-{image_size}px-tuned"
    file: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        for name in [*self.variants, *self.scout.get("variants", [])]:
            variants[name]  # UnknownNameError with the nearest
        counts = {kind: len(trials) for kind, trials in self.trials.items()}
        if not {"cosine", "introspective"} <= set(counts) or len(set(counts.values())) != 1:
            raise ConfigError(f"{self.file}: cosine and introspective need equally many trials, got {counts}")
        if set(self.scout) - {"variants", "trials"} or (self.scout and not self.scout.get("trials")):
            raise ConfigError(f"{self.file}: scout holds variants and trials, got {sorted(self.scout)}")
        for name in self.scout.get("variants", []):
            if f"idml_{name}_no_mixup" not in variants:
                raise ConfigError(
                    f"{self.file}: {name} cannot be a scout, for there is no idml_{name}_no_mixup beside it"
                )
        for control in self.controls:
            if not isinstance(control, dict) or "variant" not in control or len(control) < 2:
                raise ConfigError(f"{self.file}: a control names its variant and its settings, got {control}")
            variants[control["variant"]]
        if not self.seeds or not self.variants:
            raise ConfigError(f"{self.file}: name variants and seeds")

    def named(self, settings: dict[str, Any]) -> str:
        """Returns the name of a row with these settings, in the place of `tuned`."""
        label = "-".join(re.sub(r"[^A-Za-z0-9._+-]+", "_", f"{k}{v}").strip("_") for k, v in settings.items())
        return f"{self.name.removesuffix('tuned').rstrip('-')}-{label}"

    def words(self, variant: str, settings: dict[str, Any], **more: Any) -> list[str]:
        """Returns the overrides of one run."""
        values = {"variant": variant, **settings, **more}
        values |= {k: v for k, v in self.set.items() if k not in values}
        return [
            f"{k}={v if isinstance(v, str) else yaml.safe_dump(v, default_flow_style=True).splitlines()[0]}"
            for k, v in values.items()
        ]

    def run(self, leaderboard: str, words: list[str]) -> PlannedRun:
        """Returns one run of the recipe."""
        path = str(self.file.parent / self.recipe)
        words = [*words, f"leaderboard={leaderboard}"]
        return PlannedRun(path, words, load_config(path, words))


def read_study(path: Path) -> Study:
    """Returns the study in a file, or the stored study of that short name ("glyphs").

    Raises:
        ConfigError: no such file, an unknown or missing key, an unknown variant, trials that are not equally many.
    """
    path = find_recipe(path, "studies")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        names = ", ".join(sorted(p.name for p in (recipes_folder() / "studies").glob("*.yaml")))
        raise ConfigError(f"cannot read study {path} ({error}); at hand: {names}") from error
    keys = [k for k in Study.__dataclass_fields__ if k != "file"]
    for key in content if isinstance(content, dict) else ["nothing"]:
        if key not in keys:
            close = nearest(str(key), keys)
            raise ConfigError(
                f"{path}: unknown key {key!r}; "
                + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(keys)}")
            )
    try:
        return Study(**content, file=path)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Trial:
    """One setting of one variant on the held-out classes, with its result or its failure where there is one."""

    settings: dict[str, Any]
    run: PlannedRun
    result: Result | None
    failed: FailedTrial | None = None

    @property
    def settled(self) -> bool:
        """Whether it has been tried."""
        return self.result is not None or self.failed is not None


def _stem(result: Result) -> str:
    """Returns the row's name, without the suffix of the introspective search."""
    return result.row.removesuffix("-introspective") if result.protocol.similarity == "introspective" else result.row


class Progress:
    """The part of a study that is done, read from the result files."""

    def __init__(self, study: Study, leaderboard: str) -> None:
        self.study, self.leaderboard = study, leaderboard
        self.look()

    def look(self) -> None:
        """Reads the result files again."""
        self.tests: Recipes = recipes_of(read_results(Path(self.leaderboard) / "results"))
        self.validations: Recipes = recipes_of(read_results(Path(self.leaderboard) / "validation" / "results"))
        failed = read_failed_trials(Path(self.leaderboard) / "validation")
        self.failed = [(identity(trial.recipe), trial) for trial in failed]

    def trials(self, variant: str, settings: list[dict[str, Any]] | None = None) -> list[Trial]:
        """Returns all trials of a variant, in the file's order."""
        kind = variants[variant].similarity
        if settings is None:
            settings = self.study.trials["introspective" if kind == "introspective" else "cosine"]
        trials = []
        for setting in settings:
            words = self.study.words(variant, setting, evaluate_on="validation", name=self.study.named(setting))
            run = self.study.run(f"{self.leaderboard}/validation", words)
            recipe = identity(run.config.flat())
            failed = next((trial for other, trial in self.failed if other == recipe), None)
            trials.append(Trial(setting, run, find_result(run.config, self.validations), failed))
        return trials

    def score(self, result: Result) -> float:
        """Returns the metric that a trial is chosen by."""
        value = result.metrics.get(self.study.choose_by)
        if value is None:
            raise ConfigError(f"{result.path('')} has no {self.study.choose_by} to choose by")
        return value

    def chosen(self, variant: str) -> Trial | None:
        """Returns the best trial of a variant, of equals the first; None until all are done, or where all failed."""
        trials = self.trials(variant)
        results = [(self.score(t.result), t) for t in trials if t.result]
        return max(results, key=lambda pair: pair[0])[1] if results and all(t.settled for t in trials) else None

    def scouted(self) -> list[tuple[str, Trial]]:
        """Returns the trials of each scout."""
        names = self.study.scout.get("variants", [])
        return [(name, trial) for name in names for trial in self.trials(name, self.study.scout["trials"])]

    def variants(self) -> list[str]:
        """Returns the variants to tune; with the best scout, plain and introspective, once that is known."""
        scouts = self.scouted()
        if not any(t.result for _, t in scouts) or not all(t.settled for _, t in scouts):
            return list(self.study.variants)
        best = max(scouts, key=lambda pair: self.score(pair[1].result) if pair[1].result else 0.0)[0]
        return [*self.study.variants, best, f"idml_{best}_no_mixup"]

    def finals(self, variant: str) -> list[tuple[PlannedRun, Result | None]]:
        """Returns a tuned variant's runs on the test classes, one for each seed; none until it is tuned."""
        best = self.chosen(variant)
        if best is None:
            return []
        return self._measured(variant, {**best.settings, **self.study.measure, "name": self.study.name})

    def controls(self) -> Iterator[tuple[str, dict[str, Any], list[tuple[PlannedRun, Result | None]]]]:
        """Yields each control's variant, settings and runs on the test classes, but for what the trials chose."""
        for control in self.study.controls:
            variant, settings = control["variant"], {k: v for k, v in control.items() if k != "variant"}
            best = self.chosen(variant)
            if best is None or best.settings != settings:
                name = f"{self.study.named(settings)}-control"
                yield variant, settings, self._measured(variant, {**settings, "name": name})

    def _measured(self, variant: str, settings: dict[str, Any]) -> list[tuple[PlannedRun, Result | None]]:
        """Returns a run on the test classes for each seed, with its result where there is one."""
        runs = []
        for seed in self.study.seeds:
            run = self.study.run(self.leaderboard, self.study.words(variant, settings, seed=seed))
            row = [(e, r) for e, r in self.tests if _stem(r) == run.config.row(r.protocol.image_size)]
            runs.append((run, find_result(run.config, row)))
        return runs

    def missing(self) -> Iterator[PlannedRun]:
        """Yields the runs that can start now: variant by variant, its trials before its measurements."""
        yield from (trial.run for _, trial in self.scouted() if not trial.settled)
        for variant in self.variants():
            yield from (trial.run for trial in self.trials(variant) if not trial.settled)
            yield from (run for run, result in self.finals(variant) if result is None)
        if all(trial.settled for variant in self.variants() for trial in self.trials(variant)):
            for *_, finals in self.controls():
                yield from (run for run, result in finals if result is None)


def run_missing(progress: Progress, jobs: int, logs: Path, out: Console) -> int:
    """Trains what is missing, and returns the exit status of :func:`idml_zoo.studies.sweep.run_all`."""
    started: list[Config] = []

    def next_run() -> PlannedRun | None:
        progress.look()
        run = next((run for run in progress.missing() if run.config not in started), None)
        if run:
            started.append(run.config)
        return run

    status = run_all(next_run, jobs, logs, out)
    progress.look()
    return status


def report(progress: Progress, out: Console) -> None:
    """Prints a line for each variant: its trials, the chosen one, and how many seeds are measured."""

    def score(trial: Trial) -> str:
        return f"{100 * progress.score(trial.result):.1f}" if trial.result else "failed" if trial.failed else "–"

    for variant, trial in progress.scouted():
        out.print(f"scout  {variant:<28} {trial.settings}  {score(trial)}")
    for variant in progress.variants():
        trials, best = progress.trials(variant), progress.chosen(variant)
        scores = " ".join(score(t) for t in trials)
        finals = progress.finals(variant)
        measured = sum(result is not None for _, result in finals)
        state = f"chosen {best.settings}, {measured} of {len(finals)} seeds measured" if best else "not tuned yet"
        if all(t.failed for t in trials):
            state = "every trial failed: offer it others"
        out.print(f"{variant:<35} {progress.study.choose_by} {scores}  {state}")
        for failed in (t.failed for t in trials if t.failed):
            out.print(f"  failed: {failed.reason} ({failed.path})")
    for variant, settings, finals in progress.controls():
        measured = sum(result is not None for _, result in finals)
        out.print(f"control {variant:<27} {settings}, {measured} of {len(finals)} seeds measured")
