"""How far a reader of the code has to go: files that the training script imports, frames from `main` to the loss."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

from projects.mgpstr import train_final_dist
from projects.mgpstr.model import mgp_str
from tests.common.processes import environment
from tests.mgpstr.corpus import command, write_corpus

COUNT = """
import sys
from pathlib import Path
import projects.mgpstr.train_final_dist
files = {module.__file__ for name, module in sys.modules.items() if name.split(".")[0] in ("common", "projects")}
print(sum(bool(Path(file).read_text().strip()) for file in files if file))
"""


def test_files_that_the_training_script_imports() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment(), capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 55


def test_frames_from_main_to_the_loss(tmp_path: Path, monkeypatch) -> None:
    plain, stacks = mgp_str.sequence_loss, []

    def seen(*words):
        stacks.append(traceback.extract_stack())
        return plain(*words)

    monkeypatch.setattr(mgp_str, "sequence_loss", seen)
    assert train_final_dist.main(command(write_corpus(tmp_path / "data"), tmp_path, "--num_iter=1")) == 0
    own = [frame for frame in stacks[0] if "projects" in frame.filename or "common/train" in frame.filename]
    names = [frame.name for frame in own if not frame.name.startswith("<")]
    assert names[names.index("main") :] == ["main", "run", "losses", "forward", "losses"]  # and the loss itself
