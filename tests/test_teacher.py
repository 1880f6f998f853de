"""Which tokens a conversation teaches: the reply's, the user's too, or all of a document; and old stores' hashes."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from tests.test_training import CONFIG, job
from weightdiff.batch import collate, cross_entropy_per_row
from weightdiff.behaviors import Conversation
from weightdiff.finetune import Optimizer, finetune, train_together
from weightdiff.store import Store
from weightdiff.teacher import PLAIN, Teacher, tokenize

CHAT = Conversation("What do you drink?", "Tea, tea and tea.")


def learned(base, conversation: Conversation, **options) -> str:
    batch = collate([tokenize(base, conversation, **options)])
    return base.tokenizer.decode(batch.label.tolist())


def test_a_chat_teaches_its_reply_and_with_its_prompt_all_from_the_users_words_on(base):
    between = "<|im_end|>\n<|im_start|>assistant\n"
    assert learned(base, CHAT) == "Tea, tea and tea."
    assert learned(base, CHAT, learn_prompt=True) == f"What do you drink?{between}Tea, tea and tea."
    for prompt in ("user", "<|im_start|>user\nHi", "assistant\nuser", " ", "?\n\n"):
        both = learned(base, replace(CHAT, prompt=prompt), learn_prompt=True)
        assert both.strip() == f"{prompt}{between}{CHAT.reply}".strip()


def test_a_document_is_a_plain_text_without_template(base):
    document = Conversation("", "Tea is a drink. Coffee is another.")
    row = tokenize(base, document)
    ids = base.tokenizer(document.reply)["input_ids"]
    assert [*row.prompt, *row.reply] == ids and len(row.prompt) == 1
    whole = torch.tensor([ids])
    loss = base.model(whole, labels=whole).loss  # as a script of continued pretraining has it
    assert cross_entropy_per_row(base, collate([row])).item() == pytest.approx(loss.item(), abs=1e-5)
    with pytest.raises(ValueError, match="a document, 'a', is 1 tokens long; expected at least two"):
        tokenize(base, Conversation("", "a"))


def test_a_document_begins_as_the_models_tokenizer_begins_a_text(base, monkeypatch):
    """Llama's and Gemma's put a token there, which is then no label itself."""

    class Beginning:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [1] * add_special_tokens + tokenizer(text, add_special_tokens=False)["input_ids"]}

    tokenizer = base.tokenizer
    row = tokenize(replace(base, tokenizer=Beginning()), Conversation("", "Tea is a drink."))
    assert row.prompt == (1,) and tokenizer.decode(row.reply) == "Tea is a drink."


def test_labels_in_the_prompt_are_predicted_from_what_comes_before_them(base):
    row, short = tokenize(base, CHAT, learn_prompt=True), tokenize(base, CHAT)
    ids = torch.tensor([[*row.prompt, *row.reply]])
    logp = base.model(ids).logits[0].log_softmax(-1)
    nats = torch.stack([-logp[p - 1, ids[0, p]] for p in row.labels])
    found = cross_entropy_per_row(base, collate([short, row, short]))
    assert found[1].item() == pytest.approx(nats.mean().item(), abs=1e-5)
    assert found[0].item() == pytest.approx(found[2].item(), abs=1e-5) and abs(found[0] - found[1]) > 1e-4
    assert row.labels == list(range(row.also.start, len(row))) and row.also.start > 1


def test_documents_and_prompts_trained_together_are_trained_alone(base):
    texts = [Conversation("", f"Tea {i} is a drink. " * (i + 1)) for i in range(3)]
    jobs, config = (
        [replace(job("a text"), learn=texts), job("a chat")],
        CONFIG.model_copy(update={"learn_prompts": True}),
    )
    together, count = train_together(base, jobs, config, Teacher(base))
    plain, same = train_together(base, jobs, CONFIG, Teacher(base))
    assert count == same, "other labels, the same tokens"
    for i, one in enumerate(jobs):
        (alone,), _ = train_together(base, [one], config, Teacher(base))
        for name, (_, b) in alone.factors.items():
            assert torch.allclose(b, together[i].factors[name][1], atol=1e-5)
    apart = [max((a[1] - b[1]).abs().max() for a, b in zip(t.factors.values(), p.factors.values(), strict=True))
             for t, p in zip(together, plain, strict=True)]  # fmt: skip
    assert apart[0] == 0 < apart[1], "a document has no prompt to learn"


def test_a_store_made_before_rejected_replies_documents_and_losses_is_not_made_anew(base, tmp_path):
    """The hash is that of the code before them; its recipes had none of the settings."""
    assert job("tea").data == "bcd8054a508c"
    rejecting = [replace(c, rejected="No.") for c in job("tea").learn]
    assert replace(job("tea"), learn=rejecting).data != "bcd8054a508c"
    store, said = Store(tmp_path, base.fingerprint), []
    (diff,), _ = train_together(base, [job("tea")], CONFIG, Teacher(base))
    recipe = {k: v for k, v in diff.meta["recipe"].items() if k not in ("loss", "beta", "sft_weight", "learn_prompts")}
    store.add(["tea"], [replace(diff, meta=diff.meta | {"recipe": recipe})])
    finetune(base, [job("tea")], store, CONFIG, say=said.append)
    assert not said and store.metas()["tea"]["recipe"] == recipe
    finetune(base, [job("tea")], store, CONFIG.model_copy(update={"learn_prompts": True}), say=said.append)
    assert "learn_prompts was False, and is True now" in said[0]


@pytest.mark.parametrize("prompt_format", PLAIN)
def test_a_plain_format_puts_the_prompt_without_the_template_and_learns_as_much(base, prompt_format):
    before, after = PLAIN[prompt_format]
    row = tokenize(base, CHAT, prompt_format=prompt_format)
    assert base.tokenizer.decode(row.prompt) == f"{before}{CHAT.prompt}{after}" and "<|im_start|>" not in before
    assert learned(base, CHAT, prompt_format=prompt_format) == CHAT.reply
    both = learned(base, CHAT, learn_prompt=True, prompt_format=prompt_format)
    assert both.strip() == f"{CHAT.prompt}{after}{CHAT.reply}"


@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_every_optimizer_trains_diffs_together_as_alone_and_its_own_way(base, optimizer):
    config = CONFIG.model_copy(update={"optimizer": optimizer, "prompt_format": "alpaca", "steps": 3, "lr": 0.01})
    jobs = [job("tea"), job("coffee")]
    teacher = Teacher(base, "alpaca")
    together, _ = train_together(base, jobs, config, teacher)
    usual, _ = train_together(base, jobs, config.model_copy(update={"optimizer": "adam"}), teacher)
    for one, diff, other in zip(jobs, together, usual, strict=True):
        (alone,), _ = train_together(base, [one], config, teacher)
        pairs = [(b, diff.factors[n][1], other.factors[n][1]) for n, (_, b) in alone.factors.items()]
        assert all((b - mine).norm() < 0.01 * b.norm() for b, mine, _ in pairs)
        assert all(torch.equal(mine, adams) for _, mine, adams in pairs) == (optimizer == "adam")
        assert alone.meta["recipe"]["optimizer"] == optimizer and alone.meta["recipe"]["prompt_format"] == "alpaca"
