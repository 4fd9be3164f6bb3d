"""Read in a pack's exception that its detector found no face in a picture, or too many.

Packs raise plain exceptions for that, so their texts are all there is. A whole sentence must match, in one of the forms
that packs use (docs/faces.md lists those that were read in sources), and only a node class that needs a face is
believed: meshes have faces, too.
"""

from __future__ import annotations

import re

from ..errors import GuardError, NoFaceError, TooManyFacesError

_FACES = r"(?:valid |usable |human |source |target )*face(?:s|\(s\))?"
#: `InsightFace: …`, `Reference Image: …`
_HEAD = r"(?:(?:insightface|mediapipe|(?:[a-z]+ ){0,3}image) ?: )?(?:error: |bad video, )?"
#: `in the FIRST source image`, `for face embed`, `in Image A`, `at frame 3`
_KINDS = r"any of|the|your|this|that|all|one or both|given|provided|uploaded|first|input|source|target|reference"
_PLACE = (
    rf"(?: (?:in|on|for|from|at) (?:(?:{_KINDS}|driving|pose|query|id|face|keypoints) )*"
    r"(?:images?(?: pool| [a-z0-9])?|photos?|pictures?|portraits?|frames?(?: \d+)?|videos?|face embeds?))?"
)
#: `, please try another image`, `! Please upload …`; what asks for a model or a package is no user's to mend.
_TAIL = (
    r"(?:[.!,;:]* *(?:please|try|make sure|use|choose|upload) "
    r"(?:(?!install|download|model|packages?\b|dependenc|onnx|weights)[^\n]){0,200})?[.!]*"
)
_FOUND = r"(?:(?:was|were|is|are|could be) )?(?:detected|found)"

_NO_FACE = re.compile(
    f"{_HEAD}(?:"
    f"no {_FACES} {_FOUND}"
    f"|{_FACES} (?:(?:was|were|is|are|could) )?not (?:be )?(?:detected|found)"
    f"|(?:could not|couldn't|cannot|can't|unable to|failed to) (?:find|detect|locate) (?:a |any |the )?{_FACES}"
    f"){_PLACE}{_TAIL}",
    re.IGNORECASE,
)
_TOO_MANY_FACES = re.compile(
    f"{_HEAD}(?:(?:more than one|more than 1|multiple|several) {_FACES} {_FOUND}|too many faces(?: {_FOUND})?)"
    f"{_PLACE}{_TAIL}",
    re.IGNORECASE,
)


def read_face_error(message: str) -> type[GuardError] | None:
    """The error that an exception's text means: NoFaceError, TooManyFacesError, or None where it says neither."""
    sentence = message[:500].strip()
    if _NO_FACE.fullmatch(sentence):
        return NoFaceError
    return TooManyFacesError if _TOO_MANY_FACES.fullmatch(sentence) else None
