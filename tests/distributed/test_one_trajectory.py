"""One trajectory, however a step is cut: over ranks, into micro-batches, into rows that are padded or packed.

Documents of unlike lengths, in float64. All cuts are compared with a single process that never pads: it takes the
documents of one length together, and adds their gradients up.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy, pad
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from adafisher_hf import AdaFisherW
from tests.architectures import CASES, build
from tests.distributed.ranks import run_ranks

STEPS = 5  # refreshes at 0, 1, 2 and 4
KNOBS = dict(lr=1e-3, weight_decay=0.1, update_warmup=3, update_interval=2)
STRUCTURES = {
    "diagonal": {},
    "kronecker": {"structure": "kronecker", "token_stride": 1},
    "orthogonal": {"structure": "orthogonal", "token_stride": 1},
    "automatic": {"structure": "kronecker"},
}
TEAMS = {1: (3,), 2: (0, 1), 4: (0, 1, 2, 3)}  # which of four ranks train together; the first two teams side by side
MICRO_BATCHES = (1, 2)
LENGTHS = (4, 5, 6, 7, 7, 4, 7, 6, 5, 5, 4, 6, 7, 6, 4, 5)  # of the documents of a step, none below the stride
TOLERANCE = 1e-6  # relative to how far the weights have moved

# Looked up once a call, so that their statistics see how a step is cut (docs/limits.md). With an endless damping they
# follow their gradients alone, which do not see it; everything else is compared with its own curvature.
ONCE_A_CALL = {
    **dict.fromkeys(("bert", "electra", "albert", "distilbert"), r"\.position_embeddings\."),
    "gpt2": r"\.wpe\.",
    "deberta_v2": r"\.position_embeddings\.|\.pos_(key|query)_proj\.",
    "clip": r"\.position_embedding\.",
    "t5": r"\.relative_attention_bias\.",
    "bart": r"\.decoder\.embed_positions\.",
}
IMAGES = ("vit", "swin", "convnext", "resnet")
EXPERTS = ("mixtral", "gpt_oss", "qwen2_moe")  # with blocks of their own
ENCODER_DECODER = ("t5", "bart", "whisper")
NOTHING_TO_PAD = {
    **dict.fromkeys(IMAGES, "images of one size"),
    "wav2vec2": "its first norm is over the whole length of the sound, padding or not",
}
NOT_PACKED = {
    **dict.fromkeys((*IMAGES, "wav2vec2"), "no tokens that could stand in one row"),
    **dict.fromkeys(ENCODER_DECODER, "transformers packs no encoder-decoder models"),
    "distilbert": "its classifier reads the first token of a row",
    "clip": "one vector a row",
    "deberta_v2": "the mask is multiplied into its embeddings: it cannot have blocks",
    "mamba": "its state runs on from one document into the next",
}
NOT_PACKED_STRUCTURE = ("automatic",)  # chooses tokens by their places in a row, which are others in a packed one
# Positions that start anew do not tell these where a document begins: they get a mask in blocks.
BLOCKS = ("bert", "roberta", "electra", "albert", "modernbert", "opt", "gpt_oss")
MASK_BY_LAYER = ("modernbert", "gpt_oss")
CAUSAL = ("opt", "gpt_oss")
WINDOW = 4  # of gpt_oss


class Cell(NamedTuple):
    """One way to train one model. ``layout``: padded, packed, or unpadded."""

    name: str
    structure: str
    layout: str
    ranks: int
    micro_batches: int


def cells(names):
    for name, structure in itertools.product(names, STRUCTURES):
        layouts = ["unpadded" if name in NOTHING_TO_PAD else "padded"]
        if name not in NOT_PACKED and structure not in NOT_PACKED_STRUCTURE:
            layouts.append("packed")
        for layout, ranks, micro_batches in itertools.product(layouts, TEAMS, MICRO_BATCHES):
            yield Cell(name, structure, layout, ranks, micro_batches)


# Documents and what a model gets of them ------------------------------------------------------------------------------


def documents(name, step):
    """Those of a step, each as the tensors that the model and the loss get for it."""
    generator = torch.Generator().manual_seed(step)
    return [document(name, length, generator) for length in LENGTHS]


def document(name, length, generator):
    def ids(count):
        return torch.randint(3, 31, (count,), generator=generator)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    side = torch.randint(0, 2, (1,), generator=generator)
    if name in IMAGES:
        return {"pixel_values": noise(3, 32, 32), "targets": side}
    if name == "wav2vec2":
        return {"input_values": noise(200), "targets": side}
    if name == "clip":  # which reads a text at its end
        text = torch.cat([ids(length), torch.tensor([1])])
        return {"input_ids": text, "pixel_values": noise(3, 32, 32), "targets": side}
    given = {"input_features": noise(8, 20)} if name == "whisper" else {"input_ids": ids(length)}
    if name in ENCODER_DECODER:
        labels = ids(11 - length)
        return {**given, "labels": labels, "targets": labels}
    return {**given, "targets": side if name == "distilbert" else ids(length)}


def batch_of(name, texts, layout):
    """What the model gets, and which of its outputs have a target; None: all."""
    columns = {key: [text[key] for text in texts] for key in texts[0] if key != "targets"}
    if layout == "packed":
        return packed(name, columns["input_ids"]), None
    extra = 2 if layout == "padded" else 0
    fillers = {"input_ids": 2, "labels": -100}
    batch = {
        key: stacked(rows, extra, fillers[key]) if key in fillers else torch.stack(rows)
        for key, rows in columns.items()
    }
    real = None
    if extra and "input_ids" in batch:
        batch["attention_mask"] = stacked([torch.ones_like(ids) for ids in columns["input_ids"]], extra, 0)
        real = batch["attention_mask"].bool()
    return batch, batch["labels"] != -100 if "labels" in batch else real


def stacked(rows, extra, filler):
    return pad(pad_sequence(rows, batch_first=True, padding_value=filler), (0, extra), value=filler)


def packed(name, texts):
    """All in one row; where a document begins the positions start anew."""
    places = torch.cat([torch.arange(len(text)) for text in texts])
    first = 2 if name == "roberta" else 0  # after its padding token's
    batch = {"input_ids": torch.cat(texts)[None], "position_ids": places[None] + first}
    if name not in BLOCKS:
        return {**batch, "use_cache": False}
    owner = torch.cat([torch.full_like(text, i) for i, text in enumerate(texts)])
    back = places[:, None] - places  # how far a key lies behind a query
    visible = (owner[:, None] == owner) & (back >= 0 if name in CAUSAL else True)
    if name in MASK_BY_LAYER:
        near = back < WINDOW if name in CAUSAL else True
        masks = {"full_attention": additive(visible), "sliding_attention": additive(visible & near)}
        return {**batch, "attention_mask": masks}
    types = {} if name in CAUSAL else {"token_type_ids": torch.zeros_like(batch["input_ids"])}
    return {**batch, **types, "attention_mask": additive(visible)}


def additive(visible):
    return torch.zeros(1, 1, *visible.shape, dtype=torch.float64).masked_fill_(~visible, -1e30)


class Wide(TorchFunctionMode):
    """Models take norms and softmax in float32 whatever their dtype is: its rounding may depend on the cut."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def widened(value):
            return torch.float64 if value is torch.float32 else value

        function = torch.Tensor.double if function is torch.Tensor.float else function
        return function(*map(widened, args), **{key: widened(value) for key, value in (kwargs or {}).items()})


def loss_of(network, name, texts, layout):
    """A sum over targets, or over examples where there are none."""
    batch, real = batch_of(name, texts, layout)
    with Wide():
        output = network(**batch)
    if name == "clip":
        both = output.text_embeds + output.image_embeds
        return (both * torch.linspace(-1, 1, both.shape[-1])).sum()
    logits = output.logits
    if logits.dim() == 3:
        logits = logits.flatten(0, 1) if real is None else logits[real]
    return cross_entropy(logits, torch.cat([text["targets"] for text in texts]), reduction="sum")


# Training -------------------------------------------------------------------------------------------------------------


def started(name, structure, group=None, once_a_call=ONCE_A_CALL):
    model, _ = build(name)
    model = model.double().eval()  # no dropout, and norms over batches do not see theirs
    if name in EXPERTS:
        model.set_experts_implementation("adafisher")
    tables, others = [], []
    for parameter, p in model.named_parameters():
        (tables if re.search(once_a_call.get(name, "^$"), f".{parameter}") else others).append(p)
    groups = [{"params": others}, *([{"params": tables, "damping": 1e12}] if tables else [])]
    return model, AdaFisherW(groups, model=model, process_group=group, **KNOBS, **STRUCTURES[structure])


def trained(name, structure, layout, parts_of, ranks=1, group=None, **exceptions):
    """The weights by name. ``parts_of(texts)``: the micro-batches of this rank."""
    model, optimizer = started(name, structure, group, **exceptions)
    network = model if ranks == 1 else DistributedDataParallel(model, process_group=group, find_unused_parameters=True)
    for step in range(STEPS):
        texts = documents(name, step)
        share = ranks / sum(len(text["targets"]) for text in texts)  # DDP averages over the ranks
        optimizer.zero_grad()
        parts = parts_of(texts)
        for i, part in enumerate(parts):
            is_last = i + 1 == len(parts)
            with contextlib.nullcontext() if ranks == 1 or is_last else network.no_sync():
                (loss_of(network, name, part, layout) * share).backward()
        optimizer.step()
    optimizer.close()
    return {parameter: p.detach() for parameter, p in model.named_parameters()}


def pieces(texts, count):
    size = len(texts) // count
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def never_padded(name, structure, **exceptions):
    def by_length(texts):
        return [[text for text, n in zip(texts, LENGTHS, strict=True) if n == length] for length in set(LENGTHS)]

    return trained(name, structure, "unpadded", by_length, **exceptions)


def cut(cell, place=0, group=None, **exceptions):
    """``place``: of this rank among those that train together."""

    def parts_of(texts):
        return pieces(pieces(texts, cell.ranks)[place], cell.micro_batches)

    return trained(cell.name, cell.structure, cell.layout, parts_of, cell.ranks, group, **exceptions)


class Oracle(NamedTuple):
    """Weights at the end, by name, and the RMS of how far all of them have moved."""

    weights: dict[str, torch.Tensor]
    moved: float

    @classmethod
    def of(cls, name, structure, **exceptions):
        start = dict(build(name)[0].double().named_parameters())
        weights = never_padded(name, structure, **exceptions)
        moves = torch.cat([(weights[key] - start[key].detach()).flatten() for key in weights])
        return cls(weights, float(moves.square().mean().sqrt()))

    def away(self, weights):
        """The largest difference, relative to how far the weights have moved, and its parameter."""
        return max((float((weights[key] - p).abs().max()) / self.moved, key) for key, p in self.weights.items())


def digest(weights):
    return hashlib.sha256(b"".join(p.numpy().tobytes() for p in weights.values())).hexdigest()


def on_rank(rank, wanted, file):
    """By cell in which this rank takes part: how far it is away, and the digest of its weights."""
    oracles = torch.load(file, weights_only=False)
    groups = {ranks: dist.new_group(TEAMS[ranks]) for ranks in sorted({cell.ranks for cell in wanted})}
    found = {}
    for cell in wanted:
        team = TEAMS[cell.ranks]
        if rank in team:
            weights = cut(cell, team.index(rank), groups[cell.ranks])
            found[cell] = oracles[cell.name, cell.structure].away(weights), digest(weights)
    return found


def strays(folder, wanted, count):
    """What is wrong with these cells, on so many ranks."""
    oracles = {key: Oracle.of(*key) for key in dict.fromkeys((cell.name, cell.structure) for cell in wanted)}
    torch.save(oracles, folder / "oracles")
    ranks = run_ranks(count, on_rank, wanted, str(folder / "oracles"), timeout=1500.0, start="forkserver")
    wrong = []
    for cell in wanted:
        found = [results[cell] for results in ranks if cell in results]
        assert len(found) == cell.ranks
        wrong += [f"{cell}: {error:.1e} in {parameter}" for (error, parameter), _ in found if not error < TOLERANCE]
        wrong += [f"{cell}: the ranks have drifted apart"] if len({digest for _, digest in found}) > 1 else []
    return wrong


def test_three_models_follow_one_trajectory(tmp_path):
    wanted = [cell for cell in cells(("llama", "bert", "t5")) if cell.ranks == cell.micro_batches == 2]
    assert len(wanted) == 18 and strays(tmp_path, wanted, 2) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_model_follows_one_trajectory(tmp_path):
    assert strays(tmp_path, list(cells(CASES)), 4) == []


def test_lists_name_what_there_is():
    assert len(CASES) >= 24
    assert {*ONCE_A_CALL, *NOTHING_TO_PAD, *NOT_PACKED, *BLOCKS, *EXPERTS} <= CASES.keys()
    assert not {*NOT_PACKED} & {*BLOCKS}


@pytest.mark.parametrize("name", ONCE_A_CALL)
def test_a_table_that_is_looked_up_once_a_call_sees_the_cut(name):
    """With its own curvature: no model is on the list without need."""
    weights = cut(Cell(name, "diagonal", "padded", ranks=1, micro_batches=2), once_a_call={})
    error, parameter = Oracle.of(name, "diagonal", once_a_call={}).away(weights)
    assert error > 1e-3 and re.search(ONCE_A_CALL[name], f".{parameter}")


def test_a_choice_of_tokens_sees_the_packing():
    weights = cut(Cell("llama", "automatic", "packed", ranks=1, micro_batches=1))
    assert Oracle.of("llama", "automatic").away(weights)[0] > 1e-3
