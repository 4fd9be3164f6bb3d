"""Real photos, as they come: every face is found, and nothing else is taken for one."""

import pytest
from faces.photos import VARIANTS, WITH_FACES, WITHOUT, photo, raw

from comfyui_guarded.guard.errors import NoFaceError
from comfyui_guarded.guard.faces.check import FaceChecker, FaceRules

#: How far from the threshold of 0.65 the photos must stay. Measured: no face under 0.75, nothing else over 0.29.
FACES_ABOVE, OTHERS_BELOW = 0.7, 0.42


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", WITH_FACES)
def test_every_face_is_found(checker: FaceChecker, name: str, variant: str) -> None:
    faces = checker.check(VARIANTS[variant](photo(name)), FaceRules(max_faces=WITH_FACES[name]))
    assert len(faces.faces) == WITH_FACES[name]
    assert min(face.confidence for face in faces.faces) > FACES_ABOVE
    for face in faces.faces:
        left, top, right, bottom = face.box
        assert 0 <= left < right <= faces.width
        assert 0 <= top < bottom <= faces.height
        assert len(face.landmarks) == 5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", WITHOUT)
def test_nothing_else_is_taken_for_a_face(checker: FaceChecker, name: str, variant: str) -> None:
    with pytest.raises(NoFaceError):
        checker.check(VARIANTS[variant](photo(name)), FaceRules(min_confidence=OTHERS_BELOW))


@pytest.mark.parametrize("name", WITH_FACES)
def test_the_files_as_they_lie_there_pass(checker: FaceChecker, name: str) -> None:
    assert len(checker.check(raw(name)).faces) == WITH_FACES[name]


@pytest.mark.parametrize("name", WITHOUT)
def test_the_files_as_they_lie_there_are_refused(checker: FaceChecker, name: str) -> None:
    with pytest.raises(NoFaceError):
        checker.check(raw(name))
