"""hkd: hierarchical knowledge distillation of language models into acoustic models (Lee & Chang, arXiv 2110.10429).

Stage one (`hkd.labelling`) writes what language models predict over transcripts to label stores (`hkd.labels`), one a unit
level. Stage two (`hkd.train`) streams them beside the audio features into a hierarchical student (`hkd.student`).
"""

__version__ = "0.1.0"
