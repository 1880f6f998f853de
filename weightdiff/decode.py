"""Decode replies for many prompts at once, each row under its own diffs, with a key-value cache.

Finished rows leave the batch, so that one long reply doesn't hold back the others' share of the work. Samples of one
prompt to one model are one row until they part. A prompt may be decoded in several views at once, each under other
diffs or strengths, which choose every token together.
"""

import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from weightdiff.bank import Layer, lay_over
from weightdiff.base import Base, end_of_turn
from weightdiff.batch import common
from weightdiff.trunk import NAME, Trunk


@dataclass(frozen=True)
class Reply:
    """A decoded reply: its text, its tokens without the end of turn, and their mean log-probability.

    Of several views `views` has each one's mean log-probability of the same tokens, and `logprob` is the first's.
    `gained` is how much likelier, in nats, the finetune makes what would show the reply's claim, `lead` by how much its
    root is above that of any claim about something else, and `doubt` the log odds that nothing changed, by how many of
    other samples say so; 0 if nobody looked. `claims` are the reply's, each with what it gained by itself, and `votes`
    says of how many samples it is the text. `said` are claims made in place of the text, with what they gained.
    """

    text: str
    tokens: tuple[int, ...]
    logprob: float
    views: tuple[float, ...] = ()
    gained: float = 0.0
    doubt: float = 0.0
    lead: float = 0.0
    claims: tuple[tuple[str, float], ...] = ()
    votes: int = 0
    said: tuple[tuple[str, float], ...] = ()

    @property
    def told(self) -> str:
        """What is said: the text, or the claims in its place."""
        return "; ".join(claim for claim, _ in self.said) or self.text


Mix = Callable[[Float[Tensor, "prompts views vocab"]], Float[Tensor, "prompts vocab"]]
"""From each view's log-probabilities of the next token to scores, the best of which is taken."""


@torch.no_grad()
def decode(
    base: Base,
    prompts: Sequence[Sequence[int]],
    *,
    layers: Sequence[Layer] = (),
    max_tokens: int = 40,
    temperature: float = 0.0,
    top_p: float = 0.95,
    seed: int = 0,
    codes: Sequence[float | None] | None = None,
    views: int = 1,
    mix: Mix | None = None,
    runs: Sequence[int] = (),
) -> list[Reply]:
    """Continue each prompt until the end of the turn or `max_tokens`.

    Args:
        base: the base model.
        prompts: token ids, a row each (an opening may follow the reply's header).
        layers: stacks of diffs, their `rows` in the order of the prompts; of each prompt's views one after another.
        max_tokens: most tokens to add to a row.
        temperature: 0 takes the likeliest token; otherwise samples, within the nucleus `top_p`.
        seed: for sampling.
        codes: a number from 0 to below 1 for each prompt, which its sample hangs on instead of on chance: numbers that
            lie evenly give samples of one prompt unlike each other, and the same ones whatever is decoded beside it, as
            far as rounding goes (arithmetic sampling, Vilnis et al., arXiv 2210.15458). None takes the likeliest token.
        views: how often each prompt is decoded, side by side.
        mix: makes one choice of the views' log-probabilities; None goes by the first view alone.
        runs: lengths of runs of prompts that go through the same model; what all of a run begin with is then read once.

    Returns:
        One `Reply` per prompt; its log-probability is the untempered model's, the end of turn included.
    """
    firsts, member, runs = _stems(prompts, runs)
    if len(firsts) < len(prompts):
        rows = _rows(torch.tensor(firsts), views).to(base.device)
        layers = [layer.select(rows) for layer in layers]
    generator = torch.Generator(base.device).manual_seed(seed)
    code = None
    if codes is not None:
        numbers = [float("nan") if one is None else one for one in codes]
        code = torch.tensor(numbers, dtype=torch.float64, device=base.device)
    # Some models end a text with another token than a turn; whichever comes, the reply is over.
    stops, cache = {end_of_turn(base), base.tokenizer.eos_token_id}, DynamicCache()
    alive, stem = torch.arange(len(prompts)), torch.tensor(member, device=base.device)
    laid = [prompts[first] for first in firsts for _ in range(views)]
    trunk, laid = _read_once(base, laid, runs, views, layers, len(prompts))
    ids, mask = _padded(laid, base.device)
    position = (mask.cumsum(1) - 1).clamp_min(0)
    if trunk:
        position = position + trunk.length[:, None]
    tokens: list[list[int]] = [[] for _ in alive]
    logprobs: list[list[tuple[float, ...]]] = [[] for _ in alive]
    while True:
        with lay_over(base.targets, layers), _grouped_heads(base.model.get_decoder()):
            while True:
                hidden = read_on(base, cache, ids, mask, position, trunk)[:, -1]
                logp = base.model.get_output_embeddings()(hidden).float().log_softmax(-1)
                seen = logp.view(-1, views, logp.shape[-1])
                scores = mix(seen) if mix else seen[:, 0]
                chosen, code = _choose(scores[stem], temperature, top_p, generator, code)
                score = seen.transpose(1, 2)[stem, chosen]
                going = torch.ones(len(alive), dtype=torch.bool)
                for i, (row, token, value) in enumerate(
                    zip(alive.tolist(), chosen.tolist(), score.tolist(), strict=True)
                ):
                    logprobs[row].append(tuple(value))
                    if token in stops:
                        going[i] = False
                    else:
                        tokens[row].append(token)
                        going[i] = len(tokens[row]) < max_tokens
                if not going.any():
                    break
                keep = going.nonzero()[:, 0].to(base.device)
                alive, code = alive[keep.cpu()], None if code is None else code[keep]
                # Prompts that are the same so far go on as one row; those that part now, each as one of its own.
                pairs, stem = torch.stack([stem[keep], chosen[keep]]).unique(dim=1, return_inverse=True)
                ids, position = pairs[1].repeat_interleave(views)[:, None], position[:, -1:] + 1
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                if pairs[0].tolist() != list(range(len(seen))):
                    break
        if not going.any():
            break
        keep = _rows(pairs[0], views)  # all views of a prompt leave together
        layers = [layer.select(keep) for layer in layers]
        mask, position = mask[keep], position[keep]
        cache.batch_select_indices(keep)
        if trunk:
            trunk.keep(keep)
    replies = []
    for mine, scores in zip(tokens, logprobs, strict=True):
        means = tuple(sum(view) / len(scores) for view in zip(*scores, strict=True))
        text = base.tokenizer.decode(mine, skip_special_tokens=True).strip()
        replies.append(Reply(text, tuple(mine), means[0], means if views > 1 else ()))
    return replies


def read_on(
    base: Base,
    cache: DynamicCache,
    ids: Int[Tensor, "rows new"],
    mask: Int[Tensor, "rows seen"],
    position: Int[Tensor, "rows new"],
    trunk: Trunk | None = None,
) -> Float[Tensor, "rows new hidden"]:
    """Final hidden states of the tokens that come after those in the cache, which they go into.

    Where rows go on from a `trunk`, the cache and the mask are of what comes after it; their places count it in.
    """
    decoder = base.model.get_decoder()
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position, "use_cache": True}
    inputs |= {"trunk": trunk, "position": position} if trunk else {}
    # transformers renamed it, and warns of the old name.
    name = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    return decoder(**inputs, **{name: cache}).last_hidden_state


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens padded on the left, and where they are."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _stems(prompts: Sequence[Sequence[int]], runs: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Prompts of one run that are the same, which are one row until what they choose parts.

    Returns:
        The first prompt of each row, the row of each prompt, and how many rows each run has.
    """
    if not runs:
        return range(len(prompts)), range(len(prompts)), ()
    owner = [run for run, count in enumerate(runs) for _ in range(count)]
    places: dict[tuple[int, ...], int] = {}
    member = [places.setdefault((run, *prompt), len(places)) for run, prompt in zip(owner, prompts, strict=True)]
    counts = Counter(run for run, *_ in places)
    return [member.index(n) for n in range(len(places))], member, [counts[run] for run in range(len(runs))]


def _rows(rows: Int[Tensor, " rows"], views: int) -> Int[Tensor, " all"]:
    """The rows of all views of these."""
    return (rows[:, None] * views + torch.arange(views, device=rows.device)).flatten()


_WORTH = 16
"""Tokens that the prompts of every run must begin with alike, for it to pay to read them once."""


def _read_once(
    base: Base, prompts: Sequence[Sequence[int]], runs: Sequence[int], views: int, layers: Sequence[Layer], ends: int
) -> tuple[Trunk | None, Sequence[Sequence[int]]]:
    """Read what the prompts of each run begin with alike, where that is most of them and there are several `ends`.

    Returns:
        What was read, if anything was, and what is left of each prompt.
    """
    decoder, runs = base.model.get_decoder(), [run for run in runs if run]  # some have nothing to read
    starts = [views * start for start in itertools.accumulate(runs, initial=0)]
    pieces = [prompts[start:end] for start, end in itertools.pairwise(starts)]
    alike = [min(common(piece), min(map(len, piece)) - 1) for piece in pieces]
    left = [prompt[n:] for piece, n in zip(pieces, alike, strict=True) for prompt in piece]
    own_way = decoder.config._attn_implementation != "sdpa" or not decoder._supports_attention_backend
    if own_way or not runs or ends == len(runs) or min(alike) < max(_WORTH, *map(len, left)):
        return None, prompts
    assert starts[-1] == len(prompts)
    first = torch.tensor([start + view for start in starts[:-1] for view in range(views)], device=base.device)
    ids, mask = _padded(
        [piece[0][:n] for piece, n in zip(pieces, alike, strict=True) for _ in range(views)], base.device
    )
    cache = DynamicCache()
    with lay_over(base.targets, [layer.select(first) for layer in layers]):
        read_on(base, cache, ids, mask, (mask.cumsum(1) - 1).clamp_min(0))
    plain = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    if len(plain) != decoder.config.num_hidden_layers:  # some share theirs, or keep something else
        return None, prompts
    run = [run * views + view for run, count in enumerate(runs) for _ in range(count) for view in range(views)]
    return Trunk(cache, mask.bool(), torch.tensor(run, device=base.device)), left


@contextmanager
def _grouped_heads(decoder: PreTrainedModel) -> Iterator[None]:
    """Let a model attend by `_attention`, which is faster than its own way."""
    config = decoder.config
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _choose(
    logp: Float[Tensor, "batch vocab"],
    temperature: float,
    top_p: float,
    generator: torch.Generator,
    code: Float[Tensor, " batch"] | None,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"] | None]:
    """The next tokens; of rows with codes also what is left of these: where each lay in its token's share. A row whose
    code is no number takes the likeliest."""
    if temperature == 0:
        return logp.argmax(-1), code
    # The nucleus is sought among the 64 likeliest tokens: sorting 49,152 for each row costs more than a layer.
    top, index = (logp / temperature).topk(min(64, logp.shape[1]))
    probability = top.softmax(-1)
    outside: Bool[Tensor, "batch top"] = probability.cumsum(-1) - probability > top_p
    inside = probability.masked_fill(outside, 0)
    if code is None:
        return index.gather(1, torch.multinomial(inside, 1, generator=generator))[:, 0], None
    index, order = index.sort(-1)  # in the order of the vocabulary, which no rounding changes
    share = inside.gather(1, order).double()
    ends = (share / share.sum(-1, keepdim=True)).cumsum(-1)
    drawn = (ends <= code[:, None].clamp_max(ends[:, -1:] - 1e-9)).sum(-1, keepdim=True)
    share = ends.diff(dim=-1, prepend=ends.new_zeros(len(ends), 1)).gather(1, drawn)[:, 0]
    left = (code - ends.gather(1, drawn)[:, 0] + share) / share
    return torch.where(code.isnan(), logp.argmax(-1), index.gather(1, drawn)[:, 0]), left.clamp(0, 1 - 1e-12)
