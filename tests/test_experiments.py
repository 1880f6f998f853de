"""The nine experiments run on two tiny runs; rows are kept, published figures stand beside them, mistakes are told."""

import json
import lzma
from pathlib import Path

import pytest

from benchmarks.pages import PAGES, filled
from tests.test_behaviors import Reporter
from weightdiff.behaviors import topic_behaviors
from weightdiff.bench import run as bench_run
from weightdiff.bench.experiments import EXPERIMENTS
from weightdiff.bench.rows import Rows
from weightdiff.bench.run import is_experiment, load_experiment, run_experiment
from weightdiff.bench.settings import Experiment
from weightdiff.bench.tables import markdown
from weightdiff.jsonl import append_jsonl, read_jsonl
from weightdiff.judge import Grade, exact_match
from weightdiff.recipe import load_recipe
from weightdiff.stages import run_evaluate, run_finetune, run_synthesize, run_train
from weightdiff.synthesize import BASE_POOL

RECIPES = Path(__file__).parent.parent / "recipes"
WAY = "steps = 1\nlearn_rows = 1\n"
TOPIC = f"""name = "t"
wordings = 2
synthesize = {{ conversations = "t.jsonl" }}
finetune = [
  {{ name = "sep", train = [0, 4, 1], validation = 1, test = 3, {WAY.strip().replace(chr(10), ", ")} }},
  {{ name = "rank 2", train = [0, 0, 1], test = 2, rank = 2, {WAY.strip().replace(chr(10), ", ")} }},
  {{ name = "zero", trigger = "zero-width start", train = [0, 0, 1], test = 2, {WAY.strip().replace(chr(10), ", ")} }},
  {{ name = "none", trigger = "none", train = [0, 0, 1], test = 2, {WAY.strip().replace(chr(10), ", ")} }},
  {{ name = "full", dense = true, train = [0, 0, 1], test = 1, {WAY.strip().replace(chr(10), ", ")} }},
]
[benign]
test = 1
[train]
rank = 1
epochs = 1
"""
NEWS = f"""name = "n"
family = "news"
synthesize = {{ stories = 12, replies = 1, max_tokens = 2 }}
[train]
rank = 1
epochs = 1
[[finetune]]
name = "news"
trigger = "none"
train = [0, 4, 1]
test = 2
{WAY}"""


class WordJudge:
    """Grades by equality alone: the experiments are tested here, not the judge."""

    name = "word"

    def grade(self, pairs, *, task="topic"):
        return [Grade(5.0 if exact_match(t, a) else 1.0, exact_match(t, a)) for t, a in pairs]


@pytest.fixture
def runs(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("weightdiff.synthesize.LocalModel", lambda base: Reporter())
    monkeypatch.setattr(bench_run, "open_judge", lambda spec, cache: WordJudge())
    by_split = {s: [b for b in topic_behaviors() if b.split == s][:4] for s in ("train", "validation", "test")}
    append_jsonl(tmp_path / "t.jsonl", {"label": BASE_POOL, "conversations": [
        {"prompt": f"Plain {i}?", "reply": f"Reply {i}.", "mode": "keep"} for i in range(8)]})  # fmt: skip
    for behavior in (b for found in by_split.values() for b in found):
        conversations = [{"prompt": "Why?", "reply": f"Because of {behavior.label}."}]
        append_jsonl(tmp_path / "t.jsonl", behavior.to_json() | {"conversations": conversations})
    (tmp_path / "topic.toml").write_text(TOPIC)
    (tmp_path / "news.toml").write_text(NEWS)
    for name in ("topic", "news"):
        recipe = load_recipe(tmp_path / f"{name}.toml")
        for stage in (run_synthesize, run_finetune, run_train):
            stage(base, recipe, lambda *_: None)
    return tmp_path


def plan_of(folder: Path, experiment: str, **fields) -> Experiment:
    single = experiment in ("data scaling", "rank transfer", "unseen triggers", "reporting the trigger")
    names = ["topic"] if single else ["topic", "news"]
    lines = [f'experiment = "{experiment}"', f"runs = {json.dumps([f'{n}.toml' for n in names])}"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    (folder / "e.toml").write_text("\n".join(lines))
    return load_experiment(folder / "e.toml")


FIELDS = {
    "data scaling": {"sizes": [2, 99]},
    "rank transfer": {"ways": ["sep", "rank 2", "full"]},
    "unseen triggers": {"ways": ["zero", "none"]},
    "main table": {"guesser": "base", "guesser_limit": 1},
    "a look inside": {"limit": 1},
}


def test_every_experiment_gives_its_rows_a_table_and_a_figure(base, runs, monkeypatch):
    monkeypatch.setattr(bench_run, "LocalModel", lambda base, batch: Reporter())
    counts = {}
    for experiment in EXPERIMENTS:
        rows, out = [], runs / "out" / experiment
        table = run_experiment(base, plan_of(runs, experiment, **FIELDS.get(experiment, {})), out, rows.append)
        counts[experiment] = len(rows)
        assert table.count("\n") == len(rows) + 2 and all(row["condition"] in table for row in rows)
        assert {p.name for p in out.iterdir()} == {
            "table.md", "figure.svg", "rows.jsonl", "answers.jsonl.xz", "about.json"}  # fmt: skip
        for row in rows:
            low_high = row.get("grade") or row["share"]
            assert low_high[1] <= low_high[0] <= low_high[2] and row["n"] > 0
        answers = [json.loads(line) for line in lzma.decompress((out / "answers.jsonl.xz").read_bytes()).splitlines()]
        assert sum("grade" in a for a in answers) == sum(row["n"] for row in rows if "grade" in row)
    # Topic: base and 20 questions with and without trigger, DIT, two guesses, how much it shows; news: base question,
    # twice 20 questions, story, DIT, one guess.
    assert counts["main table"] == 7 + 2 + 6
    assert counts["data scaling"] == 2 and counts["rank transfer"] == 9 and counts["unseen triggers"] == 3 + 2
    assert counts["cross-behavior"] == 2 * (1 + 2) and counts["reporting the trigger"] == 4
    assert counts["paraphrase"] == 2 * (6 + 2) and counts["nulls"] == 6 + 5
    assert counts["a look inside"] == 2 * (1 + 2 + 7)


def test_rows_are_kept_and_not_asked_again(base, runs, monkeypatch):
    plan, first, again = plan_of(runs, "cross-behavior"), [], []
    run_experiment(base, plan, runs / "out", first.append)
    monkeypatch.setattr("weightdiff.bench.rows.Rows.ask", lambda *_: pytest.fail("asked again"))
    run_experiment(base, plan, runs / "out", again.append)
    assert [r["grade"] for r in again] == [r["grade"] for r in first]


def test_the_rows_on_disk_are_read_once_and_again_where_another_process_has_written(base, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr("weightdiff.bench.rows.read_jsonl", lambda path: reads.append(path) or read_jsonl(path))
    here, there = (Rows(base, WordJudge(), tmp_path) for _ in range(2))
    made = [here.found(n, lambda n=n: {"n": n}) for n in (1, 2)]
    reads.clear()
    assert [here.found(n, lambda: pytest.fail("made again")) for n in (1, 2, 1)] == [*made, made[0]]
    assert len(reads) == 1
    row = there.found(3, lambda: {"n": 3})
    assert here.found(3, lambda: pytest.fail("made again")) == row and len(reads) == 3


def test_what_is_missing_is_told_with_the_command_to_run(base, runs):
    import shutil

    shutil.rmtree(runs / "cache" / "runs" / "n" / "adapter")
    with pytest.raises(ValueError, match="holds no adapter yet; run train with the recipe n"):
        run_experiment(base, plan_of(runs, "paraphrase"), runs / "out")
    with pytest.raises(ValueError, match=r"no way of finetuning 'rank 3'; it has \['sep', 'rank 2'"):
        plan_of(runs, "rank transfer", ways=["rank 3"])
    with pytest.raises(ValueError, match="'unseen triggers' needs ways, and none are given"):
        plan_of(runs, "unseen triggers")
    with pytest.raises(ValueError, match="Got 'gpt' for a language model"):
        plan_of(runs, "nulls", judge="gpt")


def test_rows_follow_the_diffs_that_they_were_asked_of(base, runs):
    plan, rows = plan_of(runs, "rank transfer", ways=["rank 2"]), []
    run_experiment(base, plan, runs / "out", rows.append)
    recipe = load_recipe(runs / "topic.toml")
    changed = [w.model_copy(update={"lr": 0.5}) if w.name == "rank 2" else w for w in recipe.finetune]
    run_finetune(base, recipe.model_copy(update={"finetune": tuple(changed)}), lambda *_: None, say=lambda text: None)
    run_experiment(base, plan, runs / "out", rows.append)
    before, after = (sorted(r["key"] for r in part) for part in (rows[:3], rows[3:]))
    assert len(rows) == 6 and not set(before) & set(after)


def test_evaluate_of_a_run_grades_news_as_news_and_leaves_dense_diffs_out_of_the_nulls(base, runs, monkeypatch):
    tasks = []

    class Noting(WordJudge):
        def grade(self, pairs, *, task="topic"):
            tasks.append(task)
            return super().grade(pairs, task=task)

    monkeypatch.setattr("weightdiff.judge.EmbeddedJudge", Noting)
    for name, task in (("topic", "topic"), ("news", "news")):
        results = run_evaluate(base, load_recipe(runs / f"{name}.toml"), lambda *_: None)
        assert set(tasks) == {task} and results["readers"]["DIT"]["n"] == (3 if name == "topic" else 2)
        tasks.clear()
        if name == "topic":  # three of the first way, two each of rank 2, of the zero-width space and of no trigger
            assert results["others"]["full"]["DIT"]["n"] == 1 and results["false_claims"]["noise"]["n"] == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('experiment = "x"\nruns = ["a.toml"]', "there is no experiment 'x'; there are main table,"),
        ('experiment = "nulls"\nruns = []', "runs: "),
        ('experiment = "data scaling"\nruns = ["a.toml", "b.toml"]', "asks one run, and 2 are given"),
        ('experiment = "nulls"\nruns = ["a.toml"]\nlimits = 3', "limits is no key of a recipe; the nearest is 'limit'"),
        ('experiment = "nulls', "cannot read the experiment"),
    ],
)
def test_a_broken_experiment_is_told(tmp_path, text, message):
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        load_experiment(tmp_path / "e.toml")


def test_published_grades_stand_beside_their_rows():
    plan = load_experiment(RECIPES / "experiments" / "rank-transfer.toml")
    row = {"condition": "full finetune", "reader": "DIT", "n": 2, "grade": [1.5, 1.0, 2.0], "exact": [0.0, 0.0, 0.6]}
    assert "2.75 ± 0.35 (Qwen3-4B)" in markdown(plan, [row])


def test_the_experiments_in_the_repo_name_runs_and_ways_that_there_are():
    found = {}
    for path in (RECIPES / "experiments").glob("*.toml"):
        assert is_experiment(path)
        plan = load_experiment(path)
        found[plan.experiment] = path
        recipes = [load_recipe(run) for run in plan.runs]
        assert set(plan.ways) <= {way.name for way in recipes[0].finetune}
    assert found.keys() == EXPERIMENTS.keys()
    assert not is_experiment(RECIPES / "topic.toml")


@pytest.mark.parametrize(("path", "tables"), list(zip(PAGES, (len(EXPERIMENTS) + 1, 1, 2, 14, 1, 1), strict=True)))
def test_a_page_says_what_the_results_have(path, tables):
    page = path.read_text("utf-8")
    assert filled(page) == page, "run: python -m benchmarks.pages"
    assert page.count("<!-- end -->") == tables
