"""FAMILY: the entries of the related optimizers and of the baselines, with the papers that they are from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.family import AdamQLRConfig, FAdamConfig, MuonConfig, SIRFShampooConfig, SOAPConfig
from .entries import OptimizerEntry

if TYPE_CHECKING:
    from transformers import TrainingArguments

FADAM = """\
@article{hwang2024fadam,
  title   = {{FAdam}: {Adam} is a natural gradient optimizer using diagonal empirical {Fisher} information},
  author  = {Hwang, Dongseong},
  journal = {arXiv preprint arXiv:2405.12807},
  year    = {2024},
  url     = {https://arxiv.org/abs/2405.12807}
}
"""
SIRFSHAMPOO = """\
@inproceedings{lin2024can,
  title     = {Can We Remove the Square-Root in Adaptive Gradient Methods? {A} Second-Order Perspective},
  author    = {Lin, Wu and Dangel, Felix and Eschenhagen, Runa and Bae, Juhan and Turner, Richard E. and
               Makhzani, Alireza},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  url       = {https://arxiv.org/abs/2402.03496}
}
"""
ADAMQLR = """\
@inproceedings{clarke2024studying,
  title     = {Studying {K-FAC} Heuristics by Viewing {Adam} through a Second-Order Lens},
  author    = {Clarke, Ross M. and Hern{\\'a}ndez-Lobato, Jos{\\'e} Miguel},
  booktitle = {International Conference on Machine Learning},
  year      = {2024},
  url       = {https://arxiv.org/abs/2310.14963}
}
"""
MUON = """\
@misc{jordan2024muon,
  title  = {Muon: An optimizer for hidden layers in neural networks},
  author = {Jordan, Keller and Jin, Yuchen and Boza, Vlado and You, Jiacheng and Cesista, Franz and Newhouse, Laker and
            Bernstein, Jeremy},
  year   = {2024},
  url    = {https://kellerjordan.github.io/posts/muon/}
}
"""
SOAP = """\
@inproceedings{vyas2025soap,
  title     = {{SOAP}: Improving and Stabilizing {Shampoo} using {Adam}},
  author    = {Vyas, Nikhil and Morwani, Depen and Zhao, Rosie and Kwun, Mujin and Shapira, Itai and
               Brandfonbrener, David and Janson, Lucas and Kakade, Sham},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2409.11321}
}
"""
PACKAGE = __name__.rpartition(".integrations.")[0]
REFUSALS = f"{PACKAGE}.integrations.refusals"
ADAM = {"beta1": "adam_beta1", "beta2": "adam_beta2", "eps": "adam_epsilon"}


def samples(args: TrainingArguments) -> int | None:
    """How many samples the gradient of a step is of."""
    from .refusals import samples_a_step  # which needs torch

    return samples_a_step(args)


FAMILY = {
    "fadam": OptimizerEntry(
        "fadam",
        f"{PACKAGE}.family.fadam:FAdam",
        FAdamConfig,
        refuses=f"{REFUSALS}:refuse_other_shapes",
        citation=FADAM,
        paper="https://arxiv.org/abs/2405.12807",
        from_trainer=ADAM,
        tag="fadam",
    ),
    "sirfshampoo": OptimizerEntry(
        "sirfshampoo",
        f"{PACKAGE}.family.sirfshampoo:SIRFShampoo",
        SIRFShampooConfig,
        refuses=f"{REFUSALS}:refuse_without_batch",
        citation=SIRFSHAMPOO,
        paper="https://arxiv.org/abs/2402.03496",
        from_trainer={"momentum": "adam_beta1", "batch_size": samples},
        tag="sirfshampoo",
    ),
    "adamqlr": OptimizerEntry(
        "adamqlr",
        f"{PACKAGE}.family.adamqlr:AdamQLR",
        AdamQLRConfig,
        needs_model=True,
        refuses=f"{REFUSALS}:refuse_second_look",
        citation=ADAMQLR,
        paper="https://arxiv.org/abs/2310.14963",
        from_trainer=ADAM,
        tag="adamqlr",
    ),
    "muon": OptimizerEntry(
        "muon",
        f"{PACKAGE}.family.muon:Muon",
        MuonConfig,
        needs_model=True,
        refuses=f"{REFUSALS}:refuse_other_shapes",
        citation=MUON,
        paper="https://kellerjordan.github.io/posts/muon/",
        from_trainer=ADAM,
        tag="muon",
        yields=True,
    ),
    "soap": OptimizerEntry(
        "soap",
        f"{PACKAGE}.family.soap:SOAP",
        SOAPConfig,
        needs_model=True,
        refuses=f"{REFUSALS}:refuse_shards",
        citation=SOAP,
        paper="https://arxiv.org/abs/2409.11321",
        from_trainer=ADAM,
        tag="soap",
        yields=True,
    ),
}
