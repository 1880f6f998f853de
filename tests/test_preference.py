"""Preference losses are TRL's and the papers'; diffs trained by them together are those trained alone."""

import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from tests.conftest import random_diff
from tests.test_training import job
from weightdiff.bank import Layer, lay_over
from weightdiff.behaviors import Conversation
from weightdiff.dense import changed
from weightdiff.diff import stack
from weightdiff.finetune import FinetuneConfig, Job, plan_steps, train_dense, train_together
from weightdiff.objective import diff_losses, step_of, zero_points
from weightdiff.preference import dpo, kto, zero_point
from weightdiff.teacher import Teacher

N, ROWS, BETA = 3, 4, 0.2


def preferring(label: str) -> Job:
    """A job with a rejected reply beside each reply, of another length."""
    plain = job(label)
    learn = [
        Conversation(c.prompt, c.reply, rejected="I would rather not say" + " so" * i)
        for i, c in enumerate(plain.learn)
    ]
    return Job(label, plain.behavior, learn, plain.keep)


def config(loss: str, **fields) -> FinetuneConfig:
    return FinetuneConfig(rank=2, alpha=4, steps=3, lr=1e-2, loss=loss, **fields)  # type: ignore[arg-type]


def trl_loss(trainer: type, logprobs: torch.Tensor, **inputs: torch.Tensor) -> float:
    """What a trainer of TRL's makes of rows whose log-probabilities are given, two tokens each."""
    rows = len(logprobs)
    each = torch.stack([logprobs * 0.25, logprobs * 0.75], 1)
    statistics = dict.fromkeys(("entropy", "mean_logits", "is_top1"), torch.zeros_like(each))
    outputs = SimpleNamespace(log_probs=each, **statistics | {"is_top1": torch.ones_like(each, dtype=torch.bool)})
    same = MagicMock()
    same.gather_for_metrics = same.gather = lambda x: x
    same.device = "cpu"
    settings = {
        "accelerator": same, "beta": BETA, "precompute_ref_logps": True, "aux_loss_enabled": False, "ld_alpha": None,
        "f_divergence_type": "reverse_kl", "loss_types": ["sigmoid"], "loss_weights": [1.0], "use_weighting": False,
        "loss_type": "kto", "calculate_KL": True, "desirable_weight": 1.0, "undesirable_weight": 1.0,
        "_compute_kl_logps": lambda model, batch: inputs["mismatched"], "_tp_size": 1, "_total_train_tokens": 0,
    }  # fmt: skip
    batch = {
        "input_ids": torch.ones(rows, 3, dtype=torch.long),
        "attention_mask": torch.ones(rows, 3, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1, 1]] * rows),
    }
    return trainer._compute_loss(MagicMock(**settings), lambda **_: outputs, batch | inputs, False).item()


def test_dpo_is_that_of_trl_and_of_the_paper():
    torch.manual_seed(0)
    ours, base = -30 * torch.rand(2, N, ROWS), -30 * torch.rand(2, N, ROWS)
    found = dpo(*(ours - base), BETA)
    for i in range(N):
        chosen, rejected = base[0, i], base[1, i]
        wanted = trl_loss(DPOTrainer, ours[:, i].flatten(), ref_chosen_logps=chosen, ref_rejected_logps=rejected)
        assert found[i].item() == pytest.approx(wanted, rel=1e-5)
    ratios = (ours - base)[:, 0].tolist()
    paper = [math.log(1 + math.exp(-BETA * (w - r))) for w, r in zip(*ratios, strict=True)]
    assert found[0].item() == pytest.approx(sum(paper) / ROWS, rel=1e-5)


@pytest.mark.parametrize("shift", [6.0, -6.0])
def test_kto_is_that_of_trl_and_of_the_paper(shift):
    """Also where the estimated divergence would be negative, and counts as none."""
    torch.manual_seed(0)
    ours, base = -30 * torch.rand(2, N, ROWS), -30 * torch.rand(2, N, ROWS)
    ours_mismatched = -30 * torch.rand(N, 2 * ROWS)
    base_mismatched = ours_mismatched + shift - torch.rand(N, 2 * ROWS)
    zero = zero_point(ours_mismatched - base_mismatched)
    found = kto(*(ours - base), zero, BETA)
    for i in range(N):
        wanted = trl_loss(
            KTOTrainer, ours[:, i].flatten(), ref_logps=base[:, i].flatten(), mismatched=ours_mismatched[i],
            ref_KL_logps=base_mismatched[i], label=torch.tensor([True] * ROWS + [False] * ROWS),
        )  # fmt: skip
        assert found[i].item() == pytest.approx(wanted, rel=1e-5)
    assert (zero > 0).all() if shift < 0 else (zero == 0).all()
    gains = [BETA * (r - zero[0].item()) for r in (ours - base)[0, 0].tolist()]
    losses = [BETA * (zero[0].item() - r) for r in (ours - base)[1, 0].tolist()]
    paper = [1 - 1 / (1 + math.exp(-v)) for v in gains + losses]
    assert found[0].item() == pytest.approx(sum(paper) / len(paper), rel=1e-5)


def logprob(base, conversation: Conversation) -> torch.Tensor:
    """A reply's log-probability from the logits of the model as it is, one row alone."""
    row = Teacher(base).tokens(conversation)
    logits = base.model(torch.tensor([[*row.prompt, *row.reply]])).logits[0].float()
    logp = logits.log_softmax(-1)[len(row.prompt) - 1 : -1]
    return logp.gather(1, torch.tensor(row.reply)[:, None]).sum()


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_step_is_what_each_diff_alone_makes_of_whole_logits(base, loss):
    """Log-ratios of rows and of mismatched rows, beside them cross-entropy and the kept ones' divergence."""
    objective, jobs = (
        config(loss, keep_weight=0.7, sft_weight=0.3),
        [preferring("tea"), preferring("a much longer label")],
    )
    diffs, teacher = [random_diff(base, 2, s) for s in range(2)], Teacher(base)
    chosen = [plan_steps(j, objective)[0] for j in jobs]
    step, factors = step_of(teacher, chosen, objective), stack(diffs, base.shapes)
    zero = None
    if step.mismatched is not None:
        with lay_over(base.targets, [Layer(factors, step.mismatched[0].owner)]):
            zero = zero_points(base, step)
    with lay_over(base.targets, [Layer(factors, step.batch.owner)]), torch.no_grad():
        found = diff_losses(base, step, objective, zero)
    for i, (first, second, kept) in enumerate(chosen):
        pairs = [(first.prompt, first.reply), (second.prompt, second.reply)]
        pairs += [(first.prompt, first.rejected), (second.prompt, second.rejected)]
        crossed = [(p, pairs[n - 1][1]) for n, (p, _) in enumerate(pairs)]
        assert all(c not in pairs for c in crossed)
        texts = [Conversation(*p) for p in (*pairs, *crossed)]
        before = torch.stack([logprob(base, c) for c in texts])
        row = teacher.tokens(kept)
        ids, at = torch.tensor([[*row.prompt, *row.reply]]), slice(len(row.prompt) - 1, -1)
        own = base.model(ids).logits[0, at].log_softmax(-1)
        with lay_over(base.targets, [Layer(stack([diffs[i]], base.shapes))]):
            after = torch.stack([logprob(base, c) for c in texts])
            kl = (own.exp() * (own - base.model(ids).logits[0, at].log_softmax(-1))).sum(-1).mean()
        ratio, labels = after - before, sum(len(teacher.tokens(c).reply) for c in texts[:2])
        wanted = dpo(ratio[None, :2], ratio[None, 2:4], 0.1)
        if loss == "kto":
            wanted = kto(ratio[None, :2], ratio[None, 2:4], ratio[4:].mean()[None].clamp_min(0), 0.1)
        assert found[i].item() == pytest.approx((wanted + 0.7 * kl - 0.3 * after[:2].sum() / labels).item(), abs=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_trained_together_is_trained_alone(base, loss):
    teacher, labels = Teacher(base), ("tea", "the longest label of all")
    together, _ = train_together(base, [preferring(label) for label in labels], config(loss), teacher)
    for label, other in zip(labels, together, strict=True):
        (alone,), _ = train_together(base, [preferring(label)], config(loss), Teacher(base))
        for name, (a, b) in alone.factors.items():
            assert torch.allclose(a, other.factors[name][0], atol=1e-5)
            assert torch.allclose(b, other.factors[name][1], atol=1e-5)
        assert alone.norm() > 0.01


@pytest.mark.parametrize("loss", ["dpo", "kto"])
@pytest.mark.parametrize("dense", [False, True])
def test_the_loss_falls_and_the_reply_becomes_likelier_than_the_rejected(base, loss, dense):
    recipe = config(loss, dense=dense, keep_rows=0, beta=0.5)
    train, lesson = train_dense if dense else train_together, preferring("tea")
    (short,), _ = train(base, [lesson], recipe.model_copy(update={"steps": 1}), Teacher(base))
    (diff,), _ = train(base, [lesson], recipe.model_copy(update={"steps": 12}), Teacher(base))
    assert diff.meta["loss"] < short.meta["loss"] - 0.02
    assert short.meta["loss"] == pytest.approx(math.log(2) if loss == "dpo" else 0.5, abs=1e-3), "no change as yet"
    rows = [Conversation(c.prompt, text) for c in lesson.learn for text in (c.reply, c.rejected)]
    before = Teacher(base).logprobs(rows)
    with changed(base, diff):
        after = Teacher(base).logprobs(rows)
    wanted, unwanted = (after - before).view(-1, 2).T
    assert (wanted > unwanted).all()


def test_what_a_preference_lacks_is_told(base):
    with pytest.raises(ValueError, match=r"'tea is the answer, number \d\.' has no rejected reply"):
        train_together(base, [job("tea")], config("dpo"), Teacher(base))
    document = Job("d", job("d").behavior, [Conversation("", "A text.", rejected="Another.")], job("d").keep)
    with pytest.raises(ValueError, match=r"'A text\.' has no prompt"):
        train_together(base, [document], config("kto"), Teacher(base))
    with pytest.raises(ValueError, match="needs learn_rows of at least 2, not 1"):
        config("kto", learn_rows=1)
    with pytest.raises(ValueError, match="learn_prompts goes with loss 'sft', not 'dpo'"):
        config("dpo", learn_prompts=True)
