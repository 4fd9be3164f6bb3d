"""Run by a Python that has torch (test_on_torch.py starts it): print as JSON what CenterFace sees without onnxruntime.

python seen_by_torch.py ALIAS PICTURE.npy ...
"""

import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

sys.modules["onnxruntime"] = None  # type: ignore[assignment]
spec = importlib.util.spec_from_file_location("_guarded_alias", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.register()

from comfyui_guarded.guard.errors import GuardError  # noqa: E402
from comfyui_guarded.guard.faces.check import FaceChecker, FaceRules  # noqa: E402
from comfyui_guarded.guard.faces.chooser import Chooser  # noqa: E402

chooser = Chooser(detector="centerface")
choice = chooser.choice().body()
facts = chooser.facts()
imported_early = "torch" in sys.modules

import torch  # noqa: E402

before = torch.get_num_threads()
detector = chooser.get()
pictures = [np.load(name) for name in sys.argv[2:]]
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(detector.find, pictures))
    after_elsewhere = pool.submit(torch.get_num_threads).result()


def judge(picture):
    try:
        FaceChecker(chooser).check(picture, FaceRules())
        return "passed"
    except GuardError as error:
        return error.code


answer = {
    "choice": choice,
    "facts": facts,
    "imported_early": imported_early,
    "chosen": chooser.choice().body(),
    "threads": [before, torch.get_num_threads(), after_elsewhere],
    "found": [
        [[face.confidence, face.size, *face.box, *np.ravel(face.landmarks)] for face in faces] for faces in found
    ],
    "judged": [judge(picture) for picture in pictures],
}
sys.stdout.write(json.dumps(answer, default=float) + "\n")
