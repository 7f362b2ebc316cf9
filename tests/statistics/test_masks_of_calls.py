"""A mask belongs to the call that it was given to: inside wrappers, after the call, and when it is recomputed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel, T5Config, T5ForConditionalGeneration

from adafisher_hf import AdaFisherW
from adafisher_hf.statistics.padding import Padding
from tests.architectures import build
from tests.models import llama, tiny

IDS = torch.arange(2, 12).view(2, 5)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
DECODER_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
BOTH = dict(input_ids=IDS, attention_mask=MASK, decoder_attention_mask=DECODER_MASK, labels=IDS)
ENCODER, DECODER = "encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"
CROSS = "decoder.block.0.layer.1.EncDecAttention.k"
LAYER = "model.layers.0.mlp.down_proj"


def t5():
    torch.manual_seed(0)
    sizes = dict(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))


class Unpacks(nn.Module):
    """What people write around a model."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.head = model, nn.Linear(1, 1)

    def forward(self, **batch):
        return self.inner(**batch)


def counts(optimizer):
    """How many tokens each module counted since the last refresh, by the end of its name."""
    names = {id(module): name for name, module in optimizer._statistics.model.named_modules()}
    taps = optimizer._statistics._taps.items()
    return {names[key]: int(tap.sums.tokens) for key, tap in taps if tap.sums is not None}


def count(optimizer, module):
    return next(number for name, number in counts(optimizer).items() if name.endswith(module))


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def in_ddp(model):
    return nn.parallel.DistributedDataParallel(model)


def compiled(model):
    torch.compiler.reset()
    return torch.compile(model, backend="eager")


def with_lora(model):
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q", "k"], r=2, bias="none"))


def with_value_head(model):
    return Unpacks(Unpacks(model))


@pytest.mark.parametrize("wrap", [in_ddp, compiled, Unpacks, with_value_head])
def test_an_encoder_decoder_is_recognised_inside_a_wrapper(wrap, one_process):
    wrapped = wrap(t5())
    optimizer = AdaFisherW(wrapped.parameters(), model=wrapped)
    wrapped(**BOTH).loss.backward()
    assert (count(optimizer, ENCODER), count(optimizer, CROSS), count(optimizer, DECODER)) == (8, 8, 6)


def test_an_encoder_decoder_is_recognised_inside_peft():
    wrapped = with_lora(t5())
    optimizer = AdaFisherW([p for p in wrapped.parameters() if p.requires_grad], model=wrapped)
    wrapped(**BOTH).loss.backward()
    numbers = [count(optimizer, f"{module}.lora_A.default") for module in (ENCODER, CROSS, DECODER)]
    assert numbers == [8, 8, 6]


def test_two_models_in_one_wrapper_have_a_mask_each():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.document, self.scale = llama(), t5(), nn.Linear(1, 1)

        def forward(self, query, document):
            return self.query(**query).loss + self.document(**document).loss

    model = Both()
    optimizer = AdaFisherW(model.parameters(), model=model)
    model(dict(input_ids=IDS, attention_mask=DECODER_MASK, labels=IDS), BOTH).backward()
    assert [count(optimizer, name) for name in (LAYER, ENCODER, DECODER)] == [6, 8, 6]


def test_a_wrapper_may_pass_the_mask_by_position():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = llama()

        def forward(self, batch):
            return self.inner(batch[0], batch[1], labels=batch[0]).loss

    model = Wrapper()
    optimizer = AdaFisherW(model.parameters(), model=model)
    model((IDS, MASK)).backward()
    assert set(counts(optimizer).values()) == {8}


def test_a_vision_tower_does_not_go_by_the_mask_of_the_text():
    """Four patches and a class token: as many as the text has."""
    model, batch = build("clip")
    optimizer = AdaFisherW(model)
    model(**batch | dict(input_ids=IDS, attention_mask=MASK)).loss.backward()
    assert count(optimizer, "text_model.encoder.layers.0.mlp.fc1") == 8
    assert count(optimizer, "vision_model.encoder.layers.0.mlp.fc1") == 10


PACKED = torch.tensor([[1, 1, 2, 2, 0], [1, 2, 2, 3, 3]])
ADDED = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]) * -40000.0


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (MASK, 8),
        (MASK.bool(), 8),
        (MASK.float(), 8),
        (MASK.to(torch.bfloat16), 8),
        (MASK.to(torch.uint8), 8),
        (PACKED, 9),
        (PACKED.float(), 9),
        (ADDED, 10),  # to be added to scores: not said which tokens these are
        (ADDED.masked_fill(ADDED < 0, -torch.inf), 10),
        (torch.zeros(2, 5), 10),  # the same of a batch without padding
    ],
    ids=["int", "bool", "float", "bfloat16", "uint8", "packed", "packed-float", "added", "infinity", "added-nothing"],
)
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_values_of_a_mask_are_no_weights(mask, expected, backend):
    torch.compiler.reset()
    model = tiny()
    optimizer = AdaFisherW(model)
    network = torch.compile(model, backend=backend, fullgraph=True) if backend else model
    network(IDS % 11, attention_mask=mask).square().sum().backward()
    assert count(optimizer, "up") == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mask", [MASK, PACKED, ADDED, MASK.float()], ids=["int", "packed", "added", "float"])
def test_the_host_does_not_wait_for_a_mask(mask):
    model = tiny().cuda()
    optimizer = AdaFisherW(model)
    ids, mask = (IDS % 11).cuda(), mask.cuda()
    model(ids, attention_mask=mask).square().sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(ids, attention_mask=mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    optimizer.zero_grad()


def test_a_mask_ends_with_its_call():
    model = llama()
    optimizer = AdaFisherW(model)
    with torch.no_grad():
        model(IDS, MASK)
    model.model(IDS).last_hidden_state.square().sum().backward()
    assert count(optimizer, LAYER) == 10


def test_a_mask_ends_with_a_call_that_fails():
    model = llama()
    optimizer = AdaFisherW(model)
    with pytest.raises(IndexError):
        model(IDS + 1000, MASK)
    model.lm_head(torch.randn(2, 5, 32)).square().sum().backward()
    assert count(optimizer, "lm_head") == 10


def test_an_inner_model_that_is_called_directly_has_its_own_mask():
    model = llama()
    optimizer = AdaFisherW(model)
    model.model(IDS, MASK).last_hidden_state.square().sum().backward()
    assert count(optimizer, LAYER) == 8


def test_a_head_of_the_users_has_the_mask_of_the_users_model():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = llama().model, nn.Linear(32, 3)

        def forward(self, input_ids, attention_mask=None):
            return self.head(self.inner(input_ids, attention_mask).last_hidden_state)

    model = Tagger()
    optimizer = AdaFisherW(model)
    model(IDS, MASK).square().sum().backward()
    assert set(counts(optimizer).values()) == {8}


def test_encoder_and_decoder_that_are_called_by_themselves():
    model = t5()
    optimizer = AdaFisherW(model)
    states = model.encoder(IDS, MASK).last_hidden_state
    masks = dict(attention_mask=DECODER_MASK, encoder_attention_mask=MASK)
    output = model.decoder(IDS, encoder_hidden_states=states, **masks)
    output.last_hidden_state.square().sum().backward()
    assert (count(optimizer, ENCODER), count(optimizer, CROSS), count(optimizer, DECODER)) == (8, 8, 6)


class OneLayer(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self):
        super().__init__(PreTrainedConfig())
        self.layer = nn.Linear(4, 3)

    def forward(self, x, attention_mask=None):
        return self.layer(x)


def test_one_input_under_two_masks():
    """A dense moment is shared by layers that read the same tensor, not by calls with another mask."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = OneLayer(), OneLayer()

        def forward(self, x):
            return self.first(x, MASK).sum() + self.second(x, DECODER_MASK).square().sum()

    model, x = Both(), torch.randn(2, 5, 4)
    optimizer = AdaFisherW(model, structure="kronecker")
    model(x).backward()
    for module, mask in ((model.first, MASK), (model.second, DECODER_MASK)):
        rows = x[mask.bool()]
        sums = optimizer._statistics._taps[id(module.layer)].sums
        torch.testing.assert_close(sums.input[0, :4, :4], rows.mT @ rows)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("wrap", [nn.Identity, Unpacks])
def test_calls_before_their_backward_passes_keep_their_masks(reentrant, wrap):
    """Two forward passes, then two backward passes, which compute every layer again."""
    masks = (MASK, DECODER_MASK, torch.ones_like(MASK))

    def sums(checkpointing):
        model = llama().double().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        network = model if wrap is nn.Identity else wrap(model)
        optimizer = AdaFisherW(network)
        losses = [network(input_ids=IDS.roll(i), attention_mask=mask, labels=IDS).loss for i, mask in enumerate(masks)]
        with torch.no_grad():
            network(input_ids=IDS, attention_mask=MASK.flip(1))
        for loss in (losses[1], losses[0], losses[2]):
            loss.backward()
        return [vars(tap.sums) for tap in optimizer._statistics.taps if tap.sums is not None]

    torch.testing.assert_close(sums(True), sums(False), rtol=1e-9, atol=1e-14)


def test_a_call_inside_a_recomputed_block_counts_as_it_did():
    """Whole models may be checkpointed: their call is repeated, mask and all."""
    model = llama()
    optimizer = AdaFisherW(model)
    embeds = model.get_input_embeddings()(IDS).detach().requires_grad_()

    def run(embeds):
        return model(inputs_embeds=embeds, attention_mask=MASK).logits

    checkpoint(run, embeds, use_reentrant=True).square().sum().backward()
    assert count(optimizer, LAYER) == 8


def decoder_tokens(**inputs):
    model = t5()
    optimizer = AdaFisherW(model)
    model(input_ids=IDS, **inputs).logits.square().sum().backward()
    return count(optimizer, DECODER)


def test_a_decoder_without_labels_goes_by_its_ids():
    """Label smoothing: the Trainer takes the labels away and leaves what the collator has made of them."""
    labels = torch.tensor([[5, 6, 7, 1, -100, -100], [5, 6, 7, 8, 9, 1]])
    ids = t5().prepare_decoder_input_ids_from_labels(labels)
    assert ids[0, 0] == 0  # starts with its padding token
    assert decoder_tokens(labels=labels) == 10
    assert decoder_tokens(decoder_input_ids=ids) == 11  # the end of the first text is an input here
    assert decoder_tokens(decoder_input_ids=ids, labels=labels) == 10
    assert decoder_tokens(decoder_input_ids=torch.stack([torch.zeros(6, dtype=torch.long), ids[1]])) == 7
    everything = torch.ones_like(labels)
    assert decoder_tokens(decoder_input_ids=ids, decoder_attention_mask=everything) == 12


def test_padding_in_the_labels_that_has_a_loss_counts():
    """Labels that were padded with the padding token are learnt: their tokens have gradients."""
    for name, layer in (("t5", DECODER), ("bart", "decoder.layers.0.fc1")):
        model, _ = build(name)
        optimizer = AdaFisherW(model)
        labels = torch.tensor([[5, 6, 7, 1, 0], [5, 6, 7, 8, 1]])
        model(input_ids=IDS, labels=labels).loss.backward()
        assert count(optimizer, layer) == 10


def test_a_copy_of_a_model_watches_no_masks():
    model = llama()
    optimizer = AdaFisherW(model)
    model(IDS, MASK, labels=IDS).loss.backward()
    twin = copy.deepcopy(model)
    second = AdaFisherW(twin)
    twin(IDS, DECODER_MASK, labels=IDS).loss.backward()
    assert (count(optimizer, LAYER), count(second, LAYER)) == (8, 6)
    assert len(twin.model._forward_pre_hooks) == len(model.model._forward_pre_hooks) == 1


def test_an_interrupted_call_leaves_no_mask():
    """Python runs no hooks when a key is pressed."""
    model = llama()
    optimizer = AdaFisherW(model)

    def press(*_):
        raise KeyboardInterrupt

    handle = model.model.layers[0].register_forward_hook(press)
    with pytest.raises(KeyboardInterrupt):
        model(IDS, MASK)
    handle.remove()
    model.train().gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    model(IDS, DECODER_MASK, labels=IDS).loss.backward()
    assert count(optimizer, LAYER) == 6
    assert not optimizer._statistics.gate.padding._running


def test_masks_may_be_mapped_over():
    model = tiny()
    optimizer = AdaFisherW(model)
    ids, masks = (IDS % 11).expand(3, 2, 5), MASK.expand(3, 2, 5)
    many = torch.vmap(lambda i, m: model(i, attention_mask=m))(ids, masks)
    torch.testing.assert_close(many[1], model(IDS % 11))
    assert not counts(optimizer)


@pytest.mark.parametrize("make", [llama, t5])
def test_one_mask_is_kept_a_call(make):
    """Inner models get what the outer one was given: it is looked at once."""
    model = make()
    optimizer = AdaFisherW(model)
    model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
    assert len(optimizer._statistics.gate.padding._past) == 1


def test_hooks_are_taken_off():
    model = t5()
    padding = Padding()
    handles = padding.attach(model)
    handles.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_recomputed_vision_tower_goes_by_its_own_call():
    model, batch = build("clip")
    model.train().gradient_checkpointing_enable({"use_reentrant": True})
    optimizer = AdaFisherW(model)
    inputs = batch | dict(input_ids=IDS, attention_mask=MASK)
    for embedding in (model.text_model.embeddings, model.vision_model.embeddings):
        embedding.register_forward_hook(lambda module, args, output: output.requires_grad_())
    model(**inputs).loss.backward()
    assert count(optimizer, "text_model.encoder.layers.0.mlp.fc1") == 8
    assert count(optimizer, "vision_model.encoder.layers.0.mlp.fc1") == 10
