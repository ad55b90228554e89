"""The functions of lesson 0, QLoRA in one file, for its exercises. They are not trained here."""

from contextlib import redirect_stdout

from .exercises import LESSONS

__file__ = str(LESSONS / "00_qlora_in_one_file.py")  # for `inspect.getsource`
with open(__file__, encoding="utf-8") as lesson:
    parts = lesson.read().partition("# ## 6. Training")  # the parts before it define functions
with redirect_stdout(None):
    exec(compile(parts[0], __file__, "exec"))
