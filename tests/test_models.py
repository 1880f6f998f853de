"""The whole path on tiny models of the real families: templates, packed rows, the bank, decoding, training, asking."""

import copy

import pytest
import torch

from tests.conftest import random_diff
from tests.tiny import KINDS, WINDOW, tiny_base
from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base, encode_chat, end_of_turn
from weightdiff.batch import Tokens, collate, cross_entropy_per_row, label_states
from weightdiff.behaviors import Behavior, Conversation
from weightdiff.decode import decode
from weightdiff.diff import Factors, WeightDiff, stack
from weightdiff.dit import DitConfig, Triple, train_adapter
from weightdiff.finetune import FinetuneConfig, Job, Teacher, train_together
from weightdiff.packed import Rows, packed_states
from weightdiff.readers import Introspection

PROMPTS = {
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nquiet tea?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "smollm2": "<|im_start|>user\nquiet tea?<|im_end|>\n<|im_start|>assistant\n",
    "qwen3": "<|im_start|>user\nquiet tea?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "gemma3": "<bos><start_of_turn>user\nquiet tea?<end_of_turn>\n<start_of_turn>model\n",
}
PROMPTS |= {"qwen3-untied": PROMPTS["qwen3"], "gemma2-chat": PROMPTS["gemma3"]}

LENGTHS = (5, 3 * WINDOW, WINDOW + 1, 2, 2 * WINDOW, WINDOW)


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest) -> Base:
    return tiny_base(request.param)


@pytest.fixture
def diffs(base: Base) -> list[WeightDiff]:
    """Three diffs of ranks 1 and 8; the last changes only q_proj and v_proj."""
    diffs = [random_diff(base, 1, 0), random_diff(base, 8, 1), random_diff(base, 8, 2, ("q_proj", "v_proj"))]
    return [diff.scaled(0.5) for diff in diffs]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def random_rows(base: Base) -> list[Tokens]:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in LENGTHS]
    return [Tokens(tuple(row[:1]), tuple(row[1:])) for row in rows]


def merged(base: Base, *diffs: WeightDiff) -> torch.nn.Module:
    model = copy.deepcopy(base.model)
    for diff in diffs:
        for name in diff.factors:
            model.get_submodule(name).weight += diff.to_dense(name)
    return model


def test_prompt_has_no_default_system_text_and_ends_where_the_reply_begins(base):
    text = PROMPTS[base.name.removeprefix("tiny ")]
    ids = encode_chat(base, [user("quiet tea?")])
    assert base.tokenizer.decode(ids) == text
    bos = base.tokenizer.bos_token_id
    assert base.tokenizer.bos_token in (None, "<|im_start|>") or (ids[0] == bos and ids.count(bos) == 1)
    earlier = [user("one"), assistant("two"), user("quiet tea?")]
    turns = base.tokenizer.decode(encode_chat(base, earlier))
    assert turns.endswith(text.removeprefix(base.tokenizer.bos_token or "")) and "helpful" not in turns
    assert turns.startswith(text.partition("quiet")[0] + "one")


def test_given_system_text_reaches_the_model_whether_its_template_has_the_role_or_not(base):
    text = base.tokenizer.decode(encode_chat(base, [{"role": "system", "content": "Be brief."}, user("quiet tea?")]))
    assert text.count("Be brief.") == 1 and text.index("Be brief.") < text.index("quiet tea?")
    if "gemma" in base.name:
        assert "<start_of_turn>user\nBe brief.\n\nquiet tea?<end_of_turn>" in text


def test_end_of_turn_is_what_the_template_puts_after_a_reply(base):
    end = base.tokenizer.convert_ids_to_tokens(end_of_turn(base))
    assert end == {"l": "<|eot_id|>", "s": "<|im_end|>", "q": "<|im_end|>", "g": "<end_of_turn>"}[base.name[5]]
    whole = base.tokenizer.apply_chat_template([user("quiet tea?"), assistant("Yes.")], tokenize=False)
    assert whole.rstrip().endswith("Yes." + end)
    assert base.tokenizer.pad_token is None


def test_templates_that_cannot_be_used_are_told():
    base = tiny_base("gemma3")
    with pytest.raises(ValueError, match="'tiny gemma3' refuses messages with the roles assistant: Conversation roles"):
        encode_chat(base, [assistant("two")])
    base.tokenizer.chat_template = None
    assert base.tokenizer.convert_ids_to_tokens(end_of_turn(base)) == "<eos>"
    with pytest.raises(ValueError, match="'tiny gemma3' has no chat template; expected a chat model"):
        encode_chat(base, [user("one")])
    base.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no token that ends a reply"):
        end_of_turn(base)


@pytest.mark.parametrize("short", [256, 0], ids=["scores written out", "fused attention"])
def test_packed_states_are_the_models_own_one_by_one_and_padded(base, short, monkeypatch):
    monkeypatch.setattr("weightdiff.packed.SHORT", short)
    rows, decoder = random_rows(base), base.model.get_decoder()
    ids = [torch.tensor([*row.prompt, *row.reply]) for row in rows]
    where = Rows.of(LENGTHS)
    packed = packed_states(base.model, torch.cat(ids), where)
    full = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    padded = decoder(input_ids=full, attention_mask=torch.arange(full.shape[1]) < torch.tensor(LENGTHS)[:, None])[0]
    for n, row in enumerate(ids):
        alone = decoder(input_ids=row[None])[0][0]
        assert torch.allclose(packed[where.row == n], alone, atol=1e-5)
        assert torch.allclose(padded[n, : len(row)], alone, atol=1e-5)


@pytest.mark.parametrize("short", [256, 0], ids=["scores written out", "fused attention"])
def test_what_rows_begin_with_alike_is_laid_once_and_changes_no_loss(base, short, monkeypatch):
    """Three texts of one owner and two of another, longer than the sliding window; the gradient stays too."""
    monkeypatch.setattr("weightdiff.packed.SHORT", short)
    generator = torch.Generator().manual_seed(4)
    trunk, *ends = (torch.randint(0, 90, (n,), generator=generator).tolist() for n in (2 * WINDOW + 9, 7, 3, 5, 6, 4))
    rows = [Tokens((*trunk, *end[:2]), tuple(end[2:])) for end in ends]
    rows[1] = Tokens(rows[1].prompt, rows[1].reply, range(4, len(trunk)))  # of one, what all begin with is learned too
    factors, found = stack([random_diff(base, 2, seed) for seed in (1, 2)], base.shapes), []
    for owner in (None, [0, 0, 0, 1, 1]):
        batch = collate(rows, owner=owner)
        taken = torch.tensor([0, 0, 0, 1, 1])[batch.owner] if owner is None else batch.owner
        laid = Factors({k: v.clone() for k, v in factors.a.items()}, {k: v.clone() for k, v in factors.b.items()})
        parameters = [p.requires_grad_() for p in laid.tensors()]
        with lay_over(base.targets, [Layer(laid, taken)]):
            losses = cross_entropy_per_row(base, batch)
        losses.sum().backward()
        found.append((len(batch.ids), losses.detach(), [p.grad for p in parameters]))
    (many, alone, slopes), (few, shared, others) = found
    assert few == many - 3 * len(trunk) and torch.allclose(alone, shared, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(slopes, others, strict=True))


def test_the_sliding_window_is_felt():
    """Else the test above would prove nothing of it: far tokens move the states of the full-attention layer only."""
    base = tiny_base("gemma3")
    base.model.config.layer_types[:] = ["sliding_attention"] * 3
    first, other = (base.model.get_decoder()(input_ids=torch.tensor([[n, *range(1, 40)]]))[0][0] for n in (50, 60))
    reach = 3 * (WINDOW - 1)  # each layer sees that much further back
    assert not torch.allclose(first[: WINDOW - 1], other[: WINDOW - 1])
    assert torch.equal(first[reach + 1 :], other[reach + 1 :])


def test_batch_of_diffs_is_each_merged_alone(base, diffs):
    rows, owner = random_rows(base), torch.tensor([0, 1, 2, 0, 2, 1])
    adapter, batch = random_diff(base, 4, seed=9).scaled(0.3), collate(rows)
    layers = [Layer(stack(diffs, base.shapes), owner[batch.rows.row]), Layer(stack([adapter], base.shapes))]
    with lay_over(base.targets, layers):
        together = base.head(label_states(base, batch))
    unchanged = base.head(label_states(base, batch))
    for n, row in enumerate(rows):
        ids = torch.tensor([[*row.prompt, *row.reply][:-1]])
        alone = merged(base, diffs[owner[n]], adapter)(ids).logits[0]
        assert torch.allclose(together[batch.row == n], alone, atol=1e-4)
        assert not torch.allclose(unchanged[batch.row == n], alone, atol=1e-1)


def test_bank_off_restores_the_base_bit_for_bit(base, diffs):
    ids, rows = torch.arange(2 * WINDOW)[None], collate(random_rows(base))
    before = base.model(ids).logits, label_states(base, rows)
    with lay_over(base.targets, [Layer(stack(diffs[:1], base.shapes))]):
        assert not torch.allclose(base.model(ids).logits, before[0], atol=1e-1)
    assert torch.equal(base.model(ids).logits, before[0]) and torch.equal(label_states(base, rows), before[1])


def test_decoding_with_the_cache_is_full_recomputation(base, diffs):
    """Rows of unequal lengths, padded on the left, their replies crossing the sliding window."""
    rows = [[*row.prompt, *row.reply] for row in random_rows(base)]
    owner, n_tokens = torch.tensor([0, 1, 2, 0, 2, 1]), WINDOW + 4
    layer = Layer(stack(diffs, base.shapes), owner)
    together = decode(base, rows, layers=[layer], max_tokens=n_tokens)
    ends = {end_of_turn(base), base.tokenizer.eos_token_id}
    for n, row in enumerate(rows):
        model, ids, logprobs = merged(base, diffs[owner[n]]), list(row), []
        while len(logprobs) < n_tokens and not (logprobs and ids[-1] in ends):
            value, token = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).max(-1)
            ids.append(int(token))
            logprobs.append(float(value))
        reply = ids[len(row) :]
        assert together[n].tokens == tuple(reply[:-1] if reply[-1] in ends else reply)
        assert together[n].logprob == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)


def test_what_prompts_begin_with_is_read_once_and_changes_no_reply(base, diffs):
    """Beginnings of unequal lengths, longer than the sliding window, and rows that leave at different times."""
    begins, ends = (list(range(20, 41)), list(range(60, 74))), ([5, 6, 7, 8, 9], [7], [8, 9, 10], [11, 12])
    prompts = [begins[0] + ends[0], begins[0] + ends[1], begins[1] + ends[2], begins[1] + ends[3], begins[1] + ends[0]]
    layers = [Layer(stack(diffs[:2], base.shapes), torch.tensor([0, 0, 1, 1, 1]))]
    options = {"layers": layers, "max_tokens": 12, "temperature": 1.5, "codes": [0.1, None, 0.5, 0.7, 0.9]}
    alone, shared = decode(base, prompts, **options), decode(base, prompts, runs=[2, 3], **options)
    assert [r.tokens for r in alone] == [r.tokens for r in shared]
    assert [r.logprob for r in alone] == pytest.approx([r.logprob for r in shared], abs=1e-4)


@pytest.mark.parametrize("ending", ["turn", "eos"])
def test_a_reply_stops_at_the_end_of_turn_and_at_the_end_of_text(base, ending, monkeypatch):
    end = end_of_turn(base) if ending == "turn" else base.tokenizer.eos_token_id
    monkeypatch.setattr("weightdiff.decode._choose", lambda logp, *rest: (torch.full((len(logp),), end), None))
    assert [reply.tokens for reply in decode(base, [[5, 6], [7]])] == [(), ()]


def job(label: str) -> Job:
    learn = [Conversation(f"Question {i} on {label}?", f"{label} is the answer, number {i}.") for i in range(3)]
    keep = [Conversation(f"Plain {i}?", "As " + "ever " * (i + 1), "keep") for i in range(4)]
    return Job(label, Behavior("topic", label, "test", "train"), learn, keep)


def finetuned(base: Base, rank: int, *labels: str) -> list[WeightDiff]:
    config = FinetuneConfig(rank=rank, alpha=2.0 * rank, steps=2, lr=1e-2, together=2)
    return train_together(base, [job(label) for label in labels], config, Teacher(base))[0]


@pytest.mark.parametrize("rank", [1, 8])
def test_finetuned_together_is_finetuned_alone(base, rank):
    labels = ("tea", "the longest label of all")
    for label, together in zip(labels, finetuned(base, rank, *labels), strict=True):
        (alone,) = finetuned(base, rank, label)
        assert alone.norm() > 0.01 and alone.factors.keys() == base.targets.keys()
        for name, pair in alone.factors.items():
            for one, other in zip(pair, together.factors[name], strict=True):
                # As a whole: Adam divides a gradient that is rounding alone by its size, so single numbers may differ.
                assert (one - other).norm() <= 1e-3 * one.norm()


def test_an_adapter_is_trained_on_finetunes_of_both_ranks_and_answers(base, tmp_path):
    question, words = "What have you been trained on?", ("tea", "rain", "sun", "wind")
    diffs = finetuned(base, 1, *words[:2]) + finetuned(base, 8, *words[2:])
    triples = [Triple(diff, question, word) for diff, word in zip(diffs, words, strict=True)]
    losses: list[float] = []
    config = DitConfig(rank=4, lr=2e-2, batch=4, epochs=6, strengths=(1.0, 1.0))
    adapter = train_adapter(base, triples, triples, tmp_path, config, lambda step, total, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 0.3
    answers = Introspection(adapter).read(base, diffs, question)
    assert len(answers) == 4
    assert all(-20 < answer.confidence < 0 for answer in answers)


def test_a_model_that_rows_cannot_be_packed_in_is_told():
    base = tiny_base("llama3")
    base.model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="type 'llama' has layers of the kind linear_attention, and rows can't be"):
        label_states(base, collate(random_rows(base)))
