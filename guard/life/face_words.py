"""Read in a pack's exception that its detector found no face in a picture, or too many.

Packs raise plain exceptions for that, so their texts are all there is. A whole sentence must match, in one of the forms
that packs use (docs/faces.md lists those that were read in sources); what follows it may speak of the picture alone, in
words that are all listed here, since all else that a pack advises is about the installation, which no other photo
mends. Meshes have faces, too: so only a node class that needs one is believed, or a text that begins with the name of a
detector, which is about people. IPAdapterAdvanced needs a face only with some models.
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
#: `, please try another image`, `! Please upload …`, `. The photo must show …`: a sentence of its own, or what asks for
#: something; its words are looked at one by one.
_ASKS = r"please|try|make sure|ensure|check|use|choose|select|pick|take|send|provide|upload"
_MORE = rf"[.!,;:]*(?P<more>(?:(?<=[.!,;:]) *| +(?:{_ASKS})\b)[a-z0-9'() .!,;:-]*)?"
_FOUND = r"(?:(?:was|were|is|are|could be) )?(?:detected|found)"

_NO_FACE = re.compile(
    f"{_HEAD}(?:"
    f"no {_FACES} {_FOUND}"
    f"|{_FACES} (?:(?:was|were|is|are|could) )?not (?:be )?(?:detected|found)"
    f"|(?:could not|couldn't|cannot|can't|unable to|failed to) (?:find|detect|locate) (?:a |any |the )?{_FACES}"
    f"){_PLACE}{_MORE}",
    re.IGNORECASE,
)
_TOO_MANY_FACES = re.compile(
    f"{_HEAD}(?:(?:more than one|more than 1|multiple|several) {_FACES} {_FOUND}|too many faces(?: {_FOUND})?)"
    f"{_PLACE}{_MORE}",
    re.IGNORECASE,
)
_BY_DETECTOR = re.compile(r"(?:insightface|mediapipe) ?:", re.IGNORECASE)
#: All that is said of a photo, by whoever asks for another one.
_SAID_OF_PHOTOS = """
    please try make sure ensure check use choose select pick take send provide upload change replace crop retake
    again photo photos image images picture pictures portrait portraits selfie selfies shot headshot frame frames
    video videos film films face faces head heads person persons people someone human humans subject man woman
    character eyes camera another other others different new better good clear clearer sharp sharper bright brighter
    large larger big bigger close closer closeup whole full fully well lit light lighting front frontal facing
    forward straight upright visible clearly directly looking towards toward single one only exactly least more less
    enough than reference source input target driving uploaded given first second realistic real high higher
    resolution quality size blurred blurry dark small covered hidden turned away a an the this that these those your
    it its there which who where whose of in on at to from for with without by and or but not no is are be was were
    has have had contains contain containing shows show showing shown must should can may will needs need instead up
"""
_OF_PHOTOS = frozenset(_SAID_OF_PHOTOS.split())
_WORD = re.compile(r"[a-z0-9']+", re.IGNORECASE)
#: What Python adds: `KeyError` quotes its text, a group counts what it holds.
_GROUP = re.compile(r" \(\d+ sub-exceptions?\)$")


def read_face_error(message: str, needs_face: bool = True) -> type[GuardError] | None:
    """The error that an exception's text means: NoFaceError, TooManyFacesError, or None where it says neither.

    `needs_face`: whether the class of its node does.
    """
    sentence = _GROUP.sub("", message[:500].strip())
    if len(sentence) > 1 and sentence[0] == sentence[-1] and sentence[0] in "'\"":
        sentence = sentence[1:-1].strip()
    for form, error in ((_NO_FACE, NoFaceError), (_TOO_MANY_FACES, TooManyFacesError)):
        if (found := form.fullmatch(sentence)) is not None and (needs_face or _BY_DETECTOR.match(sentence)):
            more = _WORD.findall(found["more"] or "")
            return error if _OF_PHOTOS.issuperset(word.lower() for word in more) else None
    return None
