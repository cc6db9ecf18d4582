"""The page, its figures and the command line; and what the wandb report holds."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from benchmarks import png
from benchmarks.dashboard import html_page as page
from benchmarks.dashboard import wandb_report
from benchmarks.dashboard.__main__ import main
from benchmarks.dashboard.methods import METHOD_KEYS
from benchmarks.dashboard.wandb_report import NO_ACCOUNT, NO_LIBRARY, missing_requirement, report_sections
from tests.test_dashboard_runs import Step, write_run

SOURCES = ("aime24", "amc23")
PRESETS = Path(__file__).parents[1] / "verl_v05/config/algorithm/v05"
PNG = b"\x89PNG"


def training(v05: bool) -> list[Step]:
    """Two steps with everything that a figure draws."""
    validated = {f"val-core/{source}/acc/mean@16": 0.5 for source in SOURCES}
    step = {"timing_s/step": 5.0, "response_length/mean": 9.0, "actor/grad_norm": 1.0, "actor/entropy": 0.3}
    ours = {
        **{f"v05/k/prompts_with_{k}": float(k in (4, 16)) for k in range(17)},
        **{f"v05/prior/{name}": share for name, share in (("accepted", 0.75), ("rejected", 0.25), ("missing", 0.0))},
        "v05/baseline_mse/fused": 0.1,
        "v05/baseline_mse/group_mean": 0.2,
    }
    return [(0, validated), *((n, {**step, **validated, **(ours if v05 else {})}) for n in (1, 2))]


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of few pixels, drawn quickly."""
    monkeypatch.setattr(page, "DPI", 20)


@pytest.fixture
def every_method(tmp_path: Path) -> list[str]:
    """One run of each of the paper's methods."""
    osla = write_run(tmp_path / "osla", "v05", 4, steps=training(True), v05={"schedule": "streaming"})
    fixed = write_run(tmp_path / "fixed", "v05", 8, steps=training(True), v05={"schedule": "fixed"})
    dapo = write_run(tmp_path / "dapo", filtered=True, steps=training(False))
    return [str(folder) for folder in (osla, fixed, dapo, write_run(tmp_path / "grpo", steps=training(False)))]


def test_the_page_is_one_file_with_every_figure(every_method: list[str], tmp_path: Path) -> None:
    out, notes = tmp_path / "out", tmp_path / "notes.md"
    notes.write_text("**What it shows:** see [the paper](https://example.org/paper).")
    assert main([*every_method, "--out", str(out), "--notes", str(notes), "--title", "A & B"]) == 0
    text = (out / "index.html").read_text()
    names = [
        *("figure_1", "figure_3", "figure_4", "figure_5"),
        *("accuracy_by_rollouts", "accuracy_by_tokens", "accuracy_by_seconds"),
        *("k_distribution", "priors", "baseline_mse", "response_length"),
    ]
    assert {path.stem for path in out.glob("*.png")} == set(names) == set(re.findall(r'<figure id="(\w+)"', text))
    assert all((out / f"{name}.png").read_bytes().startswith(PNG) for name in names)
    sources = re.findall(r'\bsrc\s*=\s*"([^"]{0,22})', text)
    assert len(sources) == len(names) and set(sources) == {"data:image/png;base64,"}
    assert not re.search(r"<(link|script|iframe|object)\b|@import|url\(", text)
    assert "Difference to GRPO-16, after training" in text
    assert "<strong>What it shows:</strong>" in text and "<title>A &amp; B</title>" in text
    assert not list(out.glob("*.partial"))


def test_abbreviations_of_variants_are_spelled_out_where_they_are_used() -> None:
    text = page.how_to_read(None, ["V0.5 fixed k=4", "V0.5 fixed k=4 EB"])
    assert "EB: empirical-Bayes fusion." in text and "LOO" not in text


def test_figures_are_stored_with_a_palette() -> None:
    figure, (axis,) = png.panels(1)
    axis.plot([0, 1], [0, 1])
    image = Image.open(io.BytesIO(png.to_png(figure, dpi=20)))
    assert image.mode == "P" and image.size == (104, 76)


def test_figures_without_data_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "grpo", steps=training(False))
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/index.html").read_text()
    drawn = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert drawn.isdisjoint({"figure_5", "k_distribution", "priors", "baseline_mse"}) and "figure_1" in drawn
    absent = "Figure 5: V0.5 with a fixed number of rollouts against GRPO-16: no run of V0.5 with schedule=fixed"
    assert "Difference to" not in text  # a single method has nothing to differ from
    assert f"<li>{absent}</li>" in text and f"No figure: {absent}" in capsys.readouterr().err


def test_only_fixed_runs_still_make_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "fixed", "v05", 4, steps=training(True), v05={"schedule": "fixed"})
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    drawn = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert "figure_5" in drawn and "figure_1" not in drawn


def test_runs_that_differ_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = {"a": training(False), "b": training(False)[:2]}
    folders = [
        write_run(tmp_path / name, seed=seed, prompts=8 + seed, steps=steps)
        for seed, (name, steps) in enumerate(ends.items())
    ]
    main([*map(str, folders), "--out", str(tmp_path / "out")])
    text, said = (tmp_path / "out/index.html").read_text(), capsys.readouterr().err
    for warning in ("Runs of GRPO-16 differ in prompts: 8, 9.", "not at equal steps: a 2, b 1."):
        assert warning in said and warning in text


def test_no_run_and_an_unknown_reference_end_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 1
    assert "nothing has none of hydra/.hydra/config.yaml" in capsys.readouterr().err
    run = write_run(tmp_path / "grpo", steps=training(False))
    assert main([str(run), "--out", str(tmp_path / "out"), "--reference", "PPO"]) == 1
    assert "--reference 'PPO' is none of the methods: GRPO-16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_notes_that_load_something_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, notes = write_run(tmp_path / "grpo", steps=training(False)), tmp_path / "notes.md"
    notes.write_text("![logo](https://example.org/logo.png)")
    assert main([str(run), "--out", str(tmp_path / "out"), "--notes", str(notes)]) == 1
    assert "the notes load something ('<img')" in capsys.readouterr().err


def test_the_report_has_the_panels_of_the_figures() -> None:
    ours = ["v05/k/prompts_with_16", "v05/k/prompts_with_4", "v05/prior/missing", "v05/prior/accepted"]
    cost = ["v05/total/rollouts", "v05/total/response_tokens", "v05/total/seconds"]
    logged = ["val-core/aime24/acc/mean@16", "val-core/aime24/acc/best@16/mean", "actor/grad_norm", "lr", *ours, *cost]
    found = {section.title: section.panels for section in report_sections(logged)}
    against = [panel.x for title, drawn in found.items() if title.startswith("Validation") for panel in drawn]
    assert against == [None, *cost]
    assert {panel.metrics for panel in found["Validation accuracy against rollouts"]} == {
        ("val-core/aime24/acc/mean@16",)
    }
    assert [panel.metrics for panel in found["Stability"]] == [("actor/grad_norm",)]
    assert [(panel.metrics, panel.stacked) for panel in found["V0.5"]] == [
        (("v05/k/prompts_with_4", "v05/k/prompts_with_16"), True),
        (("v05/prior/missing", "v05/prior/accepted"), True),
    ]


def test_a_project_of_stock_runs_has_no_panels_of_costs_or_priors() -> None:
    found = report_sections(["val-core/amc23/acc/mean@1", "actor/entropy"])
    assert [section.title for section in found] == ["Validation accuracy against steps", "Stability"]
    assert report_sections(["loss"]) == []


def test_what_is_missing_for_a_report_is_said_with_the_next_step() -> None:
    assert (
        missing_requirement(offline=False, logged_in=False, library=True) == NO_ACCOUNT and "wandb sync" in NO_ACCOUNT
    )
    assert missing_requirement(offline=True, logged_in=True, library=True) == NO_ACCOUNT
    assert (
        missing_requirement(offline=False, logged_in=True, library=False) == NO_LIBRARY and "pip install" in NO_LIBRARY
    )
    assert missing_requirement(offline=False, logged_in=True, library=True) is None


def test_offline_the_report_ends_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb_report, "_logged_in", lambda: True)
    assert wandb_report.main(["team/project"]) == 2
    assert "wandb sync" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        wandb_report.main(["project-without-entity"])


@pytest.mark.parametrize(
    "override",
    [
        *("schedule=streaming", "fusion=empirical_bayes", "baseline=leave_one_out", "allocation=posterior"),
        *("prior.provider=v0", "prior.provider=none", "prior.provider=my.Prior"),
    ],
)
def test_runs_that_differ_in_the_method_or_the_prior_are_not_averaged_in_the_report(override: str) -> None:
    plain = OmegaConf.create({"algorithm": {"v05": OmegaConf.load(PRESETS / "rounds.yaml")}})
    other = OmegaConf.merge(plain, OmegaConf.from_dotlist([f"algorithm.v05.{override}"]))
    first, second = ([OmegaConf.select(config, key) for key in METHOD_KEYS] for config in (plain, other))
    assert sum(x != y for x, y in zip(first, second, strict=True)) == 1


def test_the_report_of_the_library_holds_the_panels() -> None:
    pytest.importorskip("wandb_workspaces")
    sections = report_sections(["val-core/amc23/acc/mean@1", "v05/total/rollouts", "v05/k/prompts_with_4"])
    report = wandb_report.build_report("team", "project", "title", sections)
    grids = [block for block in report.blocks if type(block).__name__ == "PanelGrid"]
    assert [[(p.x, list(p.y)) for p in grid.panels] for grid in grids] == [
        [("Step", ["val-core/amc23/acc/mean@1"])],
        [("v05/total/rollouts", ["val-core/amc23/acc/mean@1"])],
        [("Step", ["v05/k/prompts_with_4"])],
    ]
    assert grids[0].runsets[0].groupby == [f"config.{key}" for key in METHOD_KEYS]
