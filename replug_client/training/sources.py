"""Where each objective comes from, as BibTeX."""

from __future__ import annotations

from replug_client.training.choices import Objective

_REPLUG = """
@article{shi2023replug,
    title = {{REPLUG}: Retrieval-Augmented Black-Box Language Models},
    author = {Shi, Weijia and Min, Sewon and Yasunaga, Michihiro and Seo, Minjoon and James, Rich
              and Lewis, Mike and Zettlemoyer, Luke and Yih, Wen-tau},
    journal = {arXiv preprint arXiv:2301.12652},
    year = {2023}
}
"""
_ATLAS = """
@article{izacard2022atlas,
    title = {Atlas: Few-shot Learning with Retrieval Augmented Language Models},
    author = {Izacard, Gautier and Lewis, Patrick and Lomeli, Maria and Hosseini, Lucas and Petroni, Fabio
              and Schick, Timo and Dwivedi-Yu, Jane and Joulin, Armand and Riedel, Sebastian
              and Grave, Edouard},
    journal = {arXiv preprint arXiv:2208.03299},
    year = {2022}
}
"""
_EMDR2 = """
@inproceedings{sachan2021endtoend,
    title = {End-to-End Training of Multi-Document Reader and Retriever for Open-Domain Question Answering},
    author = {Sachan, Devendra Singh and Reddy, Siva and Hamilton, William L. and Dyer, Chris
              and Yogatama, Dani},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2021}
}
"""

SOURCES = {
    Objective.LSR: _REPLUG,
    Objective.PDIST: _REPLUG + _ATLAS,
    Objective.MARGINAL: _REPLUG + _EMDR2,
    Objective.LOOP: _REPLUG + _ATLAS,
}
"""BibTeX for each objective: the method's own, and the objective's where it comes from elsewhere."""
