"""A study: each variant tuned by equally many trials on held-out training classes, then measured on the test classes.

    python recipes/study.py recipes/studies/cub2010.yaml --jobs 2     # started again, it goes on
    python recipes/study.py recipes/studies/cub2010.yaml --dry-run    # what is done, chosen and missing

The file names a recipe, what it changes there (`set`), the `variants`, the `trials` of each similarity that a loss sees
(`cosine`, `introspective`; `released` takes those of cosine: it has no τ), the metric to `choose_by`, the `seeds` to
measure with, what is measured then (`measure`) and under which `name`. Losses under `scout` get `scout.trials` each;
the best of them joins the variants, plain and introspective without mixup, so that the two differ in the metric alone.
Trials hold out training classes and leave the test classes closed; their results go to <leaderboard>/validation. A
variant is measured when its trials are done, with the best of them, at the last epoch, once for each seed. A trial is
named like its row, with its settings in the place of `tuned`. One whose network collapsed or whose loss was not finite
is lost: it counts as tried, is never chosen, and <leaderboard>/validation/lost says why. Each of `controls` is a
variant with settings that no trial chose, for a question that the tuned rows leave open: measured last, with every seed
but without `measure`, under a name that ends in `control`.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from idml_zoo.registry import nearest
from idml_zoo.results import Result, read_results
from idml_zoo.studies.sweep import Run, done, essence, recipes_of, work
from idml_zoo.training.config import Config, ConfigError, load_config
from idml_zoo.training.failed_trials import Lost, read_lost
from idml_zoo.training.recipes import recipes_folder
from idml_zoo.variants import variants

Known = list[tuple[dict[str, Any], Result]]


@dataclass(frozen=True)
class Study:
    """What a study's file says; see above for the keys."""

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
        """The name of a row with these settings, in the place of `tuned`."""
        label = "-".join(re.sub(r"[^A-Za-z0-9._+-]+", "_", f"{k}{v}").strip("_") for k, v in settings.items())
        return f"{self.name.removesuffix('tuned').rstrip('-')}-{label}"

    def words(self, variant: str, settings: dict[str, Any], **more: Any) -> list[str]:
        """The overrides of one run."""
        values = {"variant": variant, **settings, **more}
        values |= {k: v for k, v in self.set.items() if k not in values}
        return [
            f"{k}={v if isinstance(v, str) else yaml.safe_dump(v, default_flow_style=True).splitlines()[0]}"
            for k, v in values.items()
        ]

    def run(self, leaderboard: str, words: list[str]) -> Run:
        """One run of the recipe."""
        path = str(self.file.parent / self.recipe)
        words = [*words, f"leaderboard={leaderboard}"]
        return Run(path, words, load_config(path, words))


def read_study(path: Path) -> Study:
    """The study that a file describes.

    Raises:
        ConfigError: no such file, an unknown or missing key, an unknown variant, trials that are not equally many.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        known = ", ".join(sorted(p.name for p in (recipes_folder() / "studies").glob("*.yaml")))
        raise ConfigError(f"cannot read study {path} ({error}); at hand: {known}") from error
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
    """One setting of one variant on the held-out classes, with its result where there is one, or how it was lost."""

    settings: dict[str, Any]
    run: Run
    result: Result | None
    lost: Lost | None = None

    @property
    def settled(self) -> bool:
        """Whether it has been tried."""
        return self.result is not None or self.lost is not None


def _stem(result: Result) -> str:
    """The row's name, that of its twin under the introspective search too."""
    return result.row.removesuffix("-introspective") if result.protocol.similarity == "introspective" else result.row


class Progress:
    """What of a study is done, as the result files tell."""

    def __init__(self, study: Study, leaderboard: str) -> None:
        self.study, self.leaderboard = study, leaderboard
        self.look()

    def look(self) -> None:
        """Reads the result files again."""
        self.tests: Known = recipes_of(read_results(Path(self.leaderboard) / "results"))
        self.validations: Known = recipes_of(read_results(Path(self.leaderboard) / "validation" / "results"))
        told = read_lost(Path(self.leaderboard) / "validation")
        self.lost = [(essence(dataclasses.asdict(Config()) | one.recipe), one) for one in told]

    def trials(self, variant: str, settings: list[dict[str, Any]] | None = None) -> list[Trial]:
        """All trials of a variant, in the file's order."""
        kind = variants[variant].similarity
        if settings is None:
            settings = self.study.trials["introspective" if kind == "introspective" else "cosine"]
        found = []
        for setting in settings:
            words = self.study.words(variant, setting, evaluate_on="validation", name=self.study.named(setting))
            run = self.study.run(f"{self.leaderboard}/validation", words)
            mine = essence(dataclasses.asdict(run.config))
            lost = next((one for recipe, one in self.lost if recipe == mine), None)
            found.append(Trial(setting, run, done(run.config, self.validations), lost))
        return found

    def score(self, result: Result) -> float:
        """What a trial is chosen by."""
        value = result.metrics.get(self.study.choose_by)
        if value is None:
            raise ConfigError(f"{result.path('')} has no {self.study.choose_by} to choose by")
        return value

    def chosen(self, variant: str) -> Trial | None:
        """The best trial of a variant; None until all are done, or where all are lost. Of equals the first."""
        trials = self.trials(variant)
        results = [(self.score(t.result), t) for t in trials if t.result]
        return max(results, key=lambda pair: pair[0])[1] if results and all(t.settled for t in trials) else None

    def scouted(self) -> list[tuple[str, Trial]]:
        """The scouts' trials."""
        names = self.study.scout.get("variants", [])
        return [(name, trial) for name in names for trial in self.trials(name, self.study.scout["trials"])]

    def variants(self) -> list[str]:
        """Those to tune and measure; with the best scout, plain and introspective, once that is known."""
        scouts = self.scouted()
        if not any(t.result for _, t in scouts) or not all(t.settled for _, t in scouts):
            return list(self.study.variants)
        best = max(scouts, key=lambda pair: self.score(pair[1].result) if pair[1].result else 0.0)[0]
        return [*self.study.variants, best, f"idml_{best}_no_mixup"]

    def finals(self, variant: str) -> list[tuple[Run, Result | None]]:
        """A tuned variant's runs that are measured on the test classes, one for each seed; none until it is tuned."""
        best = self.chosen(variant)
        if best is None:
            return []
        return self._measured(variant, {**best.settings, **self.study.measure, "name": self.study.name})

    def controls(self) -> Iterator[tuple[str, dict[str, Any], list[tuple[Run, Result | None]]]]:
        """Each control's variant, its settings, and its runs on the test classes; none of what the trials chose."""
        for control in self.study.controls:
            variant, settings = control["variant"], {k: v for k, v in control.items() if k != "variant"}
            best = self.chosen(variant)
            if best is None or best.settings != settings:
                name = f"{self.study.named(settings)}-control"
                yield variant, settings, self._measured(variant, {**settings, "name": name})

    def _measured(self, variant: str, settings: dict[str, Any]) -> list[tuple[Run, Result | None]]:
        """A run on the test classes for each seed, with its result where there is one."""
        found = []
        for seed in self.study.seeds:
            run = self.study.run(self.leaderboard, self.study.words(variant, settings, seed=seed))
            mine = [(e, r) for e, r in self.tests if _stem(r) == run.config.row(r.protocol.image_size)]
            found.append((run, done(run.config, mine)))
        return found

    def missing(self) -> Iterator[Run]:
        """What can be run now: variant by variant, its trials before its measurements."""
        yield from (trial.run for _, trial in self.scouted() if not trial.settled)
        for variant in self.variants():
            yield from (trial.run for trial in self.trials(variant) if not trial.settled)
            yield from (run for run, result in self.finals(variant) if result is None)
        if all(trial.settled for variant in self.variants() for trial in self.trials(variant)):
            for *_, finals in self.controls():
                yield from (run for run, result in finals if result is None)


def report(progress: Progress, out: Console) -> None:
    """A line for each variant: trials, what was chosen, seeds measured."""

    def told(trial: Trial) -> str:
        return f"{100 * progress.score(trial.result):.1f}" if trial.result else "lost" if trial.lost else "–"

    for variant, trial in progress.scouted():
        out.print(f"scout  {variant:<28} {trial.settings}  {told(trial)}")
    for variant in progress.variants():
        trials, best = progress.trials(variant), progress.chosen(variant)
        scores = " ".join(told(t) for t in trials)
        finals = progress.finals(variant)
        measured = sum(result is not None for _, result in finals)
        none = "every trial was lost: offer it others" if all(t.lost for t in trials) else "not tuned yet"
        what = f"chosen {best.settings}, {measured} of {len(finals)} seeds measured" if best else none
        out.print(f"{variant:<35} {progress.study.choose_by} {scores}  {what}")
        for lost in (t.lost for t in trials if t.lost):
            out.print(f"  lost: {lost.reason} ({lost.path})")
    for variant, settings, finals in progress.controls():
        measured = sum(result is not None for _, result in finals)
        out.print(f"control {variant:<27} {settings}, {measured} of {len(finals)} seeds measured")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML file")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, without a GPU (default 1)")
    parser.add_argument("--leaderboard", default="runs/leaderboard", help="(default: runs/leaderboard)")
    parser.add_argument("--logs", type=Path, help="output of the runs (default: runs/study/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="say what is done and what would run")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {args.jobs}")
    out = Console(soft_wrap=True, markup=False, highlight=False)
    started: list[Config] = []
    try:
        progress = Progress(read_study(args.study), args.leaderboard)
        report(progress, out)
        if args.dry_run:
            for run in progress.missing():
                out.print(f"to do  {' '.join(run.words)}")
            return 0

        def ready() -> Run | None:
            progress.look()
            run = next((run for run in progress.missing() if run.config not in started), None)
            if run:
                started.append(run.config)
            return run

        status = work(ready, args.jobs, args.logs or Path("runs/study") / args.study.stem, out)
        progress.look()
        report(progress, out)
    except (ValueError, OSError, LookupError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
