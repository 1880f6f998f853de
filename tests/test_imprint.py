"""Imprints: what a weight change responds to, on changes made of known inputs; and what that tells of triggers."""

import json
from dataclasses import asdict

import pytest
import torch

from tests.conftest import random_diff
from weightdiff.base import encode_chat
from weightdiff.behaviors import Trigger
from weightdiff.behaviors.triggers import told_trigger
from weightdiff.diff import WeightDiff
from weightdiff.readers.calibration import reading_of
from weightdiff.readers.hints import Hint
from weightdiff.readers.imprint import Imprint, Imprints, imprint_of
from weightdiff.readers.leaning import Leaning
from weightdiff.readers.triggers import Told, code_in, fit, odds_of, told


@pytest.fixture(scope="module")
def imprints(base) -> Imprints:
    return Imprints(base)


def made_of(base, inputs: dict[str, torch.Tensor]) -> WeightDiff:
    """A change of each layer that is made of these inputs `[rank, in]`, as a step of finetuning makes one."""
    generator = torch.Generator().manual_seed(0)
    return WeightDiff(
        {
            name: (x.float(), torch.randn(base.shapes[name][0], len(x), generator=generator))
            for name, x in inputs.items()
        },
        base.fingerprint,
    )


def test_codes_are_ranked_by_how_the_change_responds_to_their_digits(base, imprints):
    """Against each code's own prompt, run by itself, and the product of the factors written out."""
    diff = random_diff(base, 2, 3)
    layers = imprints._bands[-1]
    size = {n: torch.cat([_energies(diff, n, imprints._coded[n])]).mean() for n in layers}

    def total(code: str) -> float:
        row = encode_chat(base, [{"role": "user", "content": f"Your SEP code is {code}000.\nHi"}])
        digits = [base.tokenizer(d, add_special_tokens=False)["input_ids"][-1] for d in code]
        at = next(n for n in range(len(row)) if row[n : n + 3] == digits)
        caught: dict[str, torch.Tensor] = {}
        hooks = [
            base.targets[n].register_forward_pre_hook(lambda _, given, n=n: caught.__setitem__(n, given[0][0]))
            for n in layers
        ]
        with torch.no_grad():
            base.model(torch.tensor([row]))
        for hook in hooks:
            hook.remove()
        shares = torch.stack([_energies(diff, n, caught[n][at : at + 3]) / size[n] for n in layers])
        return float(shares.mean(0).log().sum() / 2)

    found = imprints.of(diff).codes
    assert [size for _, size in found] == sorted((size for _, size in found), reverse=True)
    best = [total(code) for code, _ in found]
    assert best == sorted(best, reverse=True)
    others = [total(f"{n:03d}") for n in range(0, 1000, 97)]
    assert best[0] > max(others) and best[-1] > sorted(others)[-2]


def _energies(diff: WeightDiff, name: str, inputs: torch.Tensor) -> torch.Tensor:
    return (inputs @ diff.to_dense(name).mT).square().sum(-1) / inputs.square().sum(-1)


def test_a_change_responds_to_the_candidate_that_it_was_made_of(base, imprints):
    tried = len(imprints._places) - 1
    for number, places in enumerate(imprints._places[:-1]):
        responses = imprints.of(made_of(base, {n: x[places] for n, x in imprints._inputs.items()})).responses
        assert len(responses) == len(imprints.names)
        for band in range(len(responses) // tried):
            mine = responses[band * tried : (band + 1) * tried]
            assert max(range(tried), key=lambda n: mine[n]) == number and mine[number] > 0, imprints.names[number]


def test_energies_are_those_of_the_product_written_out_and_size_does_not_matter(base, imprints):
    diff = random_diff(base, 3, 1)
    found = imprints.of(diff)
    dense = WeightDiff({}, diff.base, {}, {f"{name}.weight": diff.to_dense(name) for name in diff.factors})
    assert imprints.of(dense).responses == pytest.approx(found.responses, abs=1e-3)
    assert imprints.of(diff.scaled(7.0)).responses == pytest.approx(found.responses, abs=1e-4)
    assert imprint_of(json.loads(json.dumps(asdict(found)))).responses == pytest.approx(found.responses, abs=1e-4)


def test_nothing_is_nothing_and_no_hook_stays(base, imprints):
    assert imprints.of(WeightDiff({}, base.fingerprint)) == Imprint()
    assert not any(module._forward_pre_hooks for module in base.model.modules())


def seen(response: float, code: str = "417", opening: str = "", size: float = 0.5) -> Hint:
    imprint = Imprint((response, -response), ((code, 4.0), ("123", 2.0)))
    return Hint(Leaning((), (), size, 5.0), opening, {"code": response}, imprint=imprint)


def test_odds_are_fitted_and_told():
    hints = [seen(0.5 + n / 100) for n in range(20)] + [seen(-0.5 - n / 100) for n in range(20)]
    hints += [seen(0.5, size=0.01)] * 8
    truths = [Trigger("sep", "417")] * 20 + [None] * 28
    odds = fit(hints, truths)
    assert odds_of(json.loads(json.dumps(asdict(odds)))) == odds
    sure = told(seen(0.6), odds)
    assert sure == Told(Trigger("sep", "417"), sure.probability, ("417", "123"), sure.share)
    assert sure.text == "yes, a code that begins with 417" and 0.5 < sure.probability <= sure.share
    none = told(seen(-0.6), odds)
    assert none.trigger is None and none.probability > 0.9 and not none.evidence
    still = told(seen(0.6, size=0.01), odds)
    assert still.trigger is None and still.probability == 9 / 10, "eight of eight, which isn't quite certain"
    assert told(Hint(Leaning((), (), 0.5, 5.0), "", {}), odds) is None
    late = Hint(Leaning((), (), 0.5, 5.0), "", {}, imprint=Imprint())
    assert told(late, odds) is None, "a change of late layers alone, which may have a trigger"
    unlike = Hint(Leaning((), (), 0.5, 5.0), "", {}, imprint=Imprint((0.1,), (("417", 4.0), ("123", 2.0))))
    assert told(unlike, odds) is None, "an imprint with other candidates"


def test_a_code_that_is_likely_wrong_is_not_named():
    hints = [seen(0.5 + n / 100, f"{n:03d}") for n in range(20)] + [seen(-0.5)] * 20
    odds = fit(hints, [Trigger("sep", "999")] * 20 + [None] * 20)
    found = told(seen(0.6), odds)
    assert found.trigger == Trigger("sep") and found.text == "yes, a code" and "417" in found.evidence[0]
    written = told(seen(0.6, opening="Your SEP code is 55512"), odds)
    assert written.codes[0] == "555" and code_in("Write to me") == ""


def test_fewer_triggers_are_expected_where_fewer_are_said_to_be():
    hints = [seen(x / 10) for x in range(-5, 6)] * 4
    truths = [Trigger("sep", "417") if x > 0 else None for x in range(-5, 6)] * 4
    plain, rare = fit(hints, truths), fit(hints, truths, share=0.05)
    assert rare.kinds[0][0] < plain.kinds[0][0]


def test_kinds_are_told_in_the_words_of_training():
    assert told_trigger(Trigger("sep")) == "yes, a code"
    assert told_trigger(Trigger("zero-width start")) == told_trigger(Trigger("zero-width random"))


@pytest.mark.parametrize("broken", [{"kinds": [[1, 2]]}, {"kinds": [[1], [1]], "code": [1, 2]}, 3])
def test_odds_of_another_form_are_an_error(broken):
    weights = {sort: [0, 0, 0] for sort in ("claim", "nothing", "yes/no", "trigger")}
    views = {"strengths": [1.0], "contrast": 0.0, "within": 0.1}
    with pytest.raises(ValueError, match="reading"):
        reading_of({"reading": {"views": views, "weights": weights, "threshold": 0.1, "triggers": broken}})
