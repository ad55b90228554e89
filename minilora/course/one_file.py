"""The functions of lesson 0, QLoRA in one file, for its exercises. They are not trained here."""

from contextlib import redirect_stdout

from .students.exercises import LESSONS

path = LESSONS / "00_qlora_in_one_file.py"
__file__ = str(path)  # for `inspect.getsource`
text = path.read_text("utf-8")
with redirect_stdout(None):
    exec(compile(text.partition("# ## 6. Training")[0], __file__, "exec"))
