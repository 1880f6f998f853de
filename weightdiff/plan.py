"""What a run will take, before it is begun: diffs, tokens, memory, disk and time, from the recipe and a model's shape.

No weights are loaded and nothing is fetched or written. Lengths and rates are assumptions, each of which
`assumptions` puts into words; counts and shapes are exact.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch

from weightdiff.autotune import typical
from weightdiff.behaviors import SPLITS, Behavior
from weightdiff.behaviors.news import story_seeds
from weightdiff.losses import ROWS
from weightdiff.recipe import Recipe, Way, behaviors_of, benign_identities, identity_of, to_write
from weightdiff.shape import ModelShape, auto_dtype
from weightdiff.store import Store, is_store
from weightdiff.writers import SPARE

PROMPT, TRIGGER, OPENING = 20, 10, 12
"""Tokens of a short question in its chat template, of a trigger, and of the words that begin a written reply."""
ANSWER = {"topic": 4, "news": 20}
"""Tokens of a label and the end of the turn."""
POOL = 160
"""Replies of the unchanged base, which what is to be kept is drawn from."""
ACTIVATIONS = 1.5
"""Kept for the gradient, as a multiple of what goes into and out of the linear layers; measured: 1.2 (Llama) to 1.5
(Gemma 3)."""
LOGITS = 12
"""Bytes of a logit in float32, with its gradient and the softmax between them."""
ASKED_FIRST, ASKED_OTHERS, REPLY = 26, 4, 28
"""Replies that readers get from each test diff of the first way of finetuning and of the others, and their tokens."""
WRITTEN_TOGETHER, ASKED_TOGETHER, READ_TOGETHER = 64, 160, 64
"""Replies that are decoded together: in synthesis, by the reader that asks most, and of as many different diffs."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a stage: weights, activations (or key-value cache), what is trained, logits, copies."""

    weights: int
    activations: int = 0
    trained: int = 0
    logits: int = 0
    copies: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.trained + self.logits + self.copies


@dataclass(frozen=True)
class StagePlan:
    """A stage, or the part of `finetune` that is one way of finetuning: its tokens, arithmetic and memory."""

    name: str
    tokens: int
    flop: int
    memory: Memory


@dataclass(frozen=True)
class WayPlan(StagePlan):
    """One way of finetuning.

    Attributes:
        diffs: how many labels have a diff, by split.
        benign: how many more teach nothing in particular, by split.
        made: how many of all these the run's store holds already.
        dense: whether it is a full finetune.
        parameters: of one diff.
    """

    diffs: dict[str, int]
    benign: dict[str, int]
    made: int
    dense: bool
    parameters: int

    @property
    def total(self) -> int:
        """All diffs made in this way."""
        return sum(self.diffs.values()) + sum(self.benign.values())


@dataclass(frozen=True)
class Plan:
    """What a run will take; see `plan_of`.

    Attributes:
        shape, dtype: the base model, and what its weights are held in.
        rate: floating-point operations a second that the run keeps up.
        ways: one for each way of finetuning.
        stages: load, synthesize, finetune (its memory that of its largest way), train, evaluate.
        labels: behaviors that conversations are written for; 0 where the recipe starts from a file.
        conversations: to write, the base model's own included.
        triples, epochs: what the adapter is trained on in one epoch, nulls included; how often.
        adapter: its parameters.
        disk: bytes of conversations, store, and adapter with its checkpoints.
        assumptions: what all this rests on, in words.
    """

    recipe: str
    shape: ModelShape
    dtype: str
    rate: float
    ways: tuple[WayPlan, ...]
    stages: tuple[StagePlan, ...]
    labels: int
    conversations: int
    triples: int
    epochs: int
    adapter: int
    disk: dict[str, int]
    assumptions: tuple[str, ...]

    def seconds(self, stage: StagePlan | None = None) -> float:
        """Time of a stage or a way, or of the whole run."""
        return sum(s.flop for s in (self.stages if stage is None else [stage])) / self.rate


def plan_of(recipe: Recipe, shape: ModelShape, rate: float, *, dtype: torch.dtype | None = None) -> Plan:
    """What a recipe's run will take.

    Args:
        recipe: the run.
        shape: its base model's.
        rate: FLOP/s that the run keeps up, as `measured_rate` estimates it.
        dtype: of the weights; what `load_base` would choose here unless given.

    Raises:
        ValueError: the rate isn't positive, or a way of finetuning names linear layers that the model hasn't.
    """
    if not rate > 0:
        raise ValueError(f"the rate is {rate:g}; expected FLOP/s above 0, such as 300e12.")
    dtype = dtype or auto_dtype()
    width, made = dtype.itemsize, _made(recipe)
    behaviors = behaviors_of(recipe) or [s.behavior("happened") for s in story_seeds(recipe.synthesize.stories)]
    ways = tuple(_way(recipe, way, shape, width, behaviors, made) for way in recipe.finetune)
    largest = max(ways, key=lambda way: way.memory.total)
    diffs = {split: sum(w.diffs[split] + w.benign[split] for w in ways) for split in SPLITS}
    labels, conversations, writing = _synthesis(recipe, shape, width)
    adapter = shape.low_rank(recipe.train.rank)
    triples, training = _training(recipe, shape, width, diffs, adapter)
    stages = (
        StagePlan("load", 0, 0, Memory(4 * shape.parameters)),
        writing,
        StagePlan("finetune", sum(w.tokens for w in ways), sum(w.flop for w in ways), largest.memory),
        training,
        _evaluation(shape, width, ways),
    )
    text = 5 * (PROMPT + OPENING + recipe.synthesize.max_tokens) + 60  # bytes of a conversation in JSON
    disk = {
        "conversations": text * conversations,
        "store": sum(2 * w.parameters * w.total for w in ways),
        "adapter": 20 * adapter,  # itself and the best epoch's; with Adam's two numbers where training goes on
    }
    return Plan(
        recipe.name, shape, str(dtype).removeprefix("torch."), rate, ways, stages,
        labels, conversations, triples, recipe.train.epochs, adapter, disk, _assumptions(recipe, ways),
    )  # fmt: skip


def _way(
    recipe: Recipe, way: Way, shape: ModelShape, width: int, behaviors: Sequence[Behavior], made: set[str]
) -> WayPlan:
    labels = way.labels(behaviors)
    benign = {split: benign_identities(recipe, split, way) for split in SPLITS}
    ids = {*(identity_of(recipe, way, b.label) for b in labels), *chain(*benign.values())}
    reply, trigger = recipe.synthesize.max_tokens, TRIGGER * (way.trigger != "none")
    learned, kept = OPENING + reply, reply
    step = way.learn_rows * (PROMPT + trigger + learned) + way.keep_rows * (PROMPT + trigger + kept)
    step_labels = way.learn_rows * learned + way.keep_rows * kept
    parameters, head = shape.of(way), shape.hidden * shape.vocab
    # Forward and the gradient of what goes in; the frozen weights themselves get none.
    of_token = 6 * shape.decoder if way.dense else 4 * shape.decoder + 6 * parameters
    of_labels = (6 if way.dense else 4) * head * step_labels + 2 * head * way.keep_rows * kept
    device = "cuda" if torch.cuda.is_available() else "cpu"
    together = 1 if way.dense else way.together or max(1, round(typical(device) / step))
    taken = partial(_step, shape, together * step, together * step_labels)
    if way.dense:
        # The weights as they were, twice; gradient and Adam's two numbers. A model held in bf16 stays beside it.
        beside = shape.parameters * width * (width != 4)
        memory = taken(4, beside + 4 * shape.parameters, trained=12 * parameters, copies=8 * parameters)
        # Where the head is trained, its loss is of all logits at once.
        memory = replace(memory, logits=LOGITS * step_labels * shape.vocab)
    else:
        # Factors, gradient and Adam's two numbers in float32, and the factors as the layers take them.
        memory = taken(width, width * shape.parameters, trained=together * parameters * (16 + width))
    return WayPlan(
        name=way.name,
        tokens=len(ids) * way.steps * step,
        flop=len(ids) * way.steps * (step * of_token + of_labels),
        memory=memory,
        diffs={split: sum(b.split == split for b in labels) for split in SPLITS},
        benign={split: len(found) for split, found in benign.items()},
        made=len(made & ids),
        dense=way.dense,
        parameters=parameters,
    )


def _step(
    shape: ModelShape, tokens: int, labels: int, width: int, weights: int, *, trained: int = 0, copies: int = 0
) -> Memory:
    """Memory of a training step whose head is frozen: a few labels' logits at a time, and those of the base beside."""
    passed = sum(out + inn for _, out, inn in shape.linears)
    logits = (2 * width + LOGITS) * min(labels, ROWS) * shape.vocab
    return Memory(weights, round(ACTIVATIONS * width * tokens * passed), trained, logits, copies)


def _synthesis(recipe: Recipe, shape: ModelShape, width: int) -> tuple[int, int, StagePlan]:
    """Labels and conversations to write, and the stage."""
    stage = recipe.synthesize
    if stage.conversations is not None:
        return 0, 0, StagePlan("synthesize", 0, 0, Memory(width * shape.parameters))
    labels = len(to_write(recipe))
    drafts = stage.replies + SPARE if recipe.family == "topic" else stage.replies + 1 + SPARE
    local = labels * drafts if stage.writer == "base" else 0
    read = local * (PROMPT + OPENING) + POOL * PROMPT
    written = (local + POOL) * stage.max_tokens
    flop = 2 * shape.decoder * (read + written) + 2 * shape.hidden * shape.vocab * written
    memory = _decoding(shape, width, WRITTEN_TOGETHER, PROMPT + OPENING + stage.max_tokens)
    return labels, labels * stage.replies + POOL, StagePlan("synthesize", read + written, flop, memory)


def _training(
    recipe: Recipe, shape: ModelShape, width: int, diffs: dict[str, int], adapter: int
) -> tuple[int, StagePlan]:
    """Triples of an epoch, and the stage."""
    config, answer = recipe.train, ANSWER[recipe.family]
    nulls = recipe.nulls / (1 - recipe.nulls)  # as `stages.triples` has it
    triples, checks = (diffs[s] + round(diffs[s] * nulls) for s in ("train", "validation"))
    length, head = PROMPT + answer, shape.hidden * shape.vocab
    learning = triples * (length * (4 * shape.decoder + 6 * adapter) + 4 * head * answer)
    checking = checks * 2 * (length * shape.decoder + head * answer)
    low_rank = max((shape.low_rank(w.rank, w.modules) for w in recipe.finetune if not w.dense), default=0)
    memory = _step(
        shape, config.batch * length, config.batch * answer, width, width * shape.parameters,
        trained=adapter * (16 + width), copies=config.batch * low_rank * (4 + width),
    )  # fmt: skip
    tokens = config.epochs * (triples + checks) * length
    return triples, StagePlan("train", tokens, config.epochs * (learning + checking), memory)


def _evaluation(shape: ModelShape, width: int, ways: Sequence[WayPlan]) -> StagePlan:
    asked = [ASKED_FIRST] + [ASKED_OTHERS] * (len(ways) - 1)
    replies = sum(n * way.diffs["test"] for n, way in zip(asked, ways, strict=True))
    tokens = replies * (PROMPT + REPLY)
    flop = 2 * shape.decoder * tokens + 2 * shape.hidden * shape.vocab * replies * REPLY
    # A dense diff is read alone and in float32, and the weights that it changes are kept beside it.
    tested = [w.parameters * (1 if w.dense else READ_TOGETHER) for w in ways if w.diffs["test"]]
    memory = _decoding(shape, width, ASKED_TOGETHER, PROMPT + REPLY, (4 + width) * max([0, *tested]))
    return StagePlan("evaluate", tokens, flop, memory)


def _decoding(shape: ModelShape, width: int, rows: int, length: int, copies: int = 0) -> Memory:
    cache = rows * length * shape.layers * shape.cached * width
    return Memory(width * shape.parameters, cache, 0, LOGITS * rows * shape.vocab, copies)


def _made(recipe: Recipe) -> set[str]:
    """Ids of the diffs that the run's store holds already."""
    folder = recipe.folder / "diffs"
    return set(Store(folder).metas()) if is_store(folder) else set()


def _assumptions(recipe: Recipe, ways: Iterable[WayPlan]) -> tuple[str, ...]:
    stage, answer = recipe.synthesize, ANSWER[recipe.family]
    said = [
        f"A row has {PROMPT} tokens of prompt, {TRIGGER} more with a trigger, and a reply of {stage.max_tokens} "
        f"tokens, with {OPENING} before them where it is to be learned; a triple {PROMPT} and {answer}.",
        "Arithmetic per token: 4 x the decoder's parameters in training (forward, and the gradient of what goes in), "
        "6 x in a dense finetune, 2 x in decoding; 6 x those of a diff or the adapter that is trained; and the output "
        "head at labels only. Attention's own, a few percent at these lengths, is left out.",
        f"Memory: activations are {ACTIVATIONS} x what goes into and out of all linear layers, in the weights' type; "
        f"a logit is {LOGITS} bytes; a trained number has a gradient and two of Adam's in float32; a dense finetune "
        "holds the weights three times, in float32, beside those. Loading takes float32 weights in main memory. Of the "
        "process itself, some 0.5 GB, nothing is counted.",
        "Decoding small batches is bound by memory and not by arithmetic: synthesize and evaluate may take longer.",
        "Disk: the store is in bf16; the adapter's share has its checkpoints.",
    ]
    if stage.conversations is not None:
        said.append(
            f"Conversations come from {stage.conversations.name}; labels that it lacks are counted all the same."
        )
    elif stage.writer != "base":
        said.append(f"{stage.writer} writes what is to be learned; its time and tokens aren't counted.")
    if recipe.family == "news" and recipe.conversations.exists():
        said.append("Diffs are counted of the stories that are written by now only; synthesize may still write more.")
    elif recipe.family == "news":
        said.append("Before synthesis every story counts; a few will find no headline, or one too near to another's.")
    if any(way.made for way in ways):
        said.append("Diffs that are made already are counted, and aren't made again unless their settings changed.")
    return tuple(said)
