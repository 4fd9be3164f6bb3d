"""What inputs and node classes are, by what they are called."""

from __future__ import annotations

import enum
import functools
import re

#: Longer names are nothing that is known here. They come from clients, and what they are is remembered.
LONGEST = 80


class Role(enum.Enum):
    """What a number in an input sets."""

    WIDTH = enum.auto()  # of the picture that comes out
    HEIGHT = enum.auto()
    MOST_WIDTH = enum.auto()  # of something that may be a picture: the one that comes in may be larger
    MOST_HEIGHT = enum.auto()
    MEGAPIXELS = enum.auto()
    SIDE = enum.auto()  # the longer side, or one of both
    SHORT_SIDE = enum.auto()  # the shorter side, from which the longer follows
    SQUARE = enum.auto()  # both sides
    SCALE = enum.auto()
    BATCH = enum.auto()
    LAYERS = enum.auto()
    REPEAT = enum.auto()  # how many times as many pictures, where the class says so
    FRAMES = enum.auto()
    BETWEEN = enum.auto()  # frames that are put between others, before or after them
    SOUND_FRAMES = enum.auto()  # of the film that a sound is for
    START = enum.auto()  # the frame with which something begins, where the class says that there are others before it
    INPUTS = enum.auto()  # of pictures; one that is not there is the first
    CAP = enum.auto()  # frames that are read at most; 0: all
    RATE = enum.auto()
    FORCED_RATE = enum.auto()
    SECONDS = enum.auto()
    STEPS = enum.auto()
    FIRST_STEP = enum.auto()
    LAST_STEP = enum.auto()
    EDGE = enum.auto()  # what is added at one side, where the class says so
    EDGES = enum.auto()  # or at all of them
    COPIES = enum.auto()  # how many times as many pictures, whatever the class is called
    SWAP = enum.auto()  # whether a size out of a list is taken for one that lies on its side
    STRETCH = enum.auto()  # by which one side becomes longer
    BORDER = enum.auto()  # between two pictures side by side, where the class says so
    FONT_SIZE = enum.auto()
    SHADOW = enum.auto()  # by which a text's picture is larger than the text
    CELL_WIDTH = enum.auto()  # of each picture on a sheet
    CELL_HEIGHT = enum.auto()
    COLUMNS = enum.auto()
    ROWS = enum.auto()
    SPACING = enum.auto()  # between pictures side by side
    TILE = enum.auto()  # a side of the pieces into which a picture is cut
    OVERLAP = enum.auto()  # of those
    MULTIPLE = enum.auto()  # to which sides are rounded
    ROUNDS = enum.auto()  # of a loop, or items of a list, each of which runs all that follows


class Trait(enum.Enum):
    """What a node does to the pictures that it gets, or the numbers."""

    SWITCH = enum.auto()  # hands on one of its inputs
    REPEATS = enum.auto()
    INTERPOLATES = enum.auto()
    CUTS = enum.auto()  # takes pictures out of a batch
    SOUND = enum.auto()  # has to do with sound, whose latents take next to nothing
    CROPS = enum.auto()
    PADS = enum.auto()
    JOINS = enum.auto()  # gives all the pictures of all its inputs
    STITCHES = enum.auto()  # makes one picture of several, side by side
    TILES = enum.auto()  # cuts pictures into pieces that overlap
    SHEET = enum.auto()  # makes one picture of all of a batch
    LOOPS = enum.auto()
    HOLDS = enum.auto()  # what begins later, it holds as it is up to then
    TURNS = enum.auto()
    ONE_MASK = enum.auto()  # gives one mask for all of its pictures
    REFITS = enum.auto()  # pads, turns, crops and scales, in an order that it is told
    ENLARGES = enum.auto()  # cuts out pieces that are some times as large as what is on them
    FLAT = enum.auto()  # cuts pictures, and of a film's latents no side
    TAKES_FILMS = enum.auto()  # of a batch of latents, each of which may be a film's
    KEEPS = enum.auto()  # draws on the pictures that it gets, whatever sizes it is told
    FOR_CLIP = enum.auto()  # gives pictures as models look at them
    BESIDE = enum.auto()  # puts one picture beside the one that it makes
    LABELS = enum.auto()  # adds a strip with a text, as high as it is told
    SEVERAL = enum.auto()  # makes several of one text, with each of which a sampler runs
    LIMITS = enum.auto()  # the size that it names is the largest
    SCALES = enum.auto()
    PLUS = enum.auto()
    MINUS = enum.auto()
    TIMES = enum.auto()
    OVER = enum.auto()
    COUNTS = enum.auto()  # gives how many there are
    CALCULATES = enum.auto()  # by formulas in its texts
    ROUNDS_OFF = enum.auto()  # to the nearest whole number; others cut off what is behind the point
    PICKS = enum.auto()  # a number between others
    HANDS_ON = enum.auto()  # its only input, as it is


_EXACT = (
    r"(?:custom_|target_|output_|final_|empty_latent_|resize_|new_|image_|latent_|video_|frame_|canvas_|res_|crop_)?"
)
#: Parts of a name by which a width is not that of a picture.
_NO_SIZE = re.compile(
    r"tile|line|border|stroke|box|spacing|window|dilat|shape|stick|mask|text|font|grid|cell|band|min|divis|thresh|edge|"
    r"lens|slider|point|pad|overlap|kernel|radius|block"
)
_PATTERNS: tuple[tuple[Role, str], ...] = (
    (Role.CELL_WIDTH, r"cell_width"),
    (Role.CELL_HEIGHT, r"cell_height"),
    (Role.STRETCH, r"(?:width|height|crop_size)_mult"),
    (Role.BORDER, r"border_width"),
    (Role.TILE, r"tile_(?:width|height|size)"),
    (Role.SPACING, r"spacing_width|spacing|gap|padding"),
    (Role.MULTIPLE, r"resolution_steps|multiple(?:_of)?|divisible_by|round_to"),
    (Role.FIRST_STEP, r"start_at_step|start_step"),
    (Role.LAST_STEP, r"end_at_step|end_step|last_step"),
    (Role.STEPS, r"(?:.+_)?steps"),
    (Role.WIDTH, rf"{_EXACT}width|width_override"),
    (Role.HEIGHT, rf"{_EXACT}height|height_override"),
    (Role.MOST_WIDTH, r"(?:.*_)?width(?:_.*)?"),
    (Role.MOST_HEIGHT, r"(?:.*_)?height(?:_.*)?"),
    (Role.MEGAPIXELS, r"mega_?pixels?|total_megapixels"),
    (Role.SIDE, r"(?:longer|longest|largest|max|long)_(?:size|side|edge|dimension)|side_length|target_size"),
    (Role.SHORT_SIDE, r"(?:shorter|shortest|smallest|short)_(?:size|side|edge|dimension)|(?:target_)?resolution"),
    (Role.SQUARE, r"base_resolution|texture_size"),
    (Role.SCALE, r"scale_by|upscale_by|(?:upscale_|rescale_|scale_)?factor|rescale|upscale|scale|resize_scale"),
    (Role.BATCH, r"batch_size|batch_count|num_images"),
    (Role.LAYERS, r"layers"),
    (Role.COPIES, r"multiply_by|repeats?|repeat_output|copies|num_repeats|repeat_count|num_copies|duplication_factor"),
    (Role.REPEAT, r"amount|times|multiplier|size|count"),
    (Role.CAP, r"(?:frame|image)_load_cap"),
    (Role.INPUTS, r"input_?count"),
    (
        Role.BETWEEN,
        r"(?:.*_)?(?:transition(?:ing)?|empty|starting|ending|extra|(?:cross_?)?fade|inserted|pad(?:ding)?|hold|freeze|"
        r"between|blend)_frames(?:_per_.*)?",
    ),
    (Role.FRAMES, r"(?:segment_)?length|(?:num|n|total|max|video)_frames|frames|frame_count|video_length|num_frame"),
    (Role.SOUND_FRAMES, r"frames_number"),
    (Role.START, r"start_frame"),
    (Role.FORCED_RATE, r"force_rate"),
    (Role.RATE, r"fps|frame_rate"),
    (Role.SECONDS, r"seconds|duration|duration_s|duration_seconds|seconds_total|total_seconds|total_second_length"),
    (Role.EDGE, r"(?:pad(?:ding)?_|expand_|extend_)?(?:left|right|top|bottom)"),
    (Role.EDGES, r"extra_padding"),
    (Role.FONT_SIZE, r"font_size"),
    (Role.SWAP, r"invert|swap|swap_dimensions"),
    (Role.SHADOW, r"shadow_distance"),
    (Role.COLUMNS, r"(?:num_|max_)?col(?:umn)?s"),
    (Role.ROWS, r"(?:num_|max_)?rows"),
    (Role.OVERLAP, r"(?:tile_)?overlap(?:_x|_y)?"),
    (Role.ROUNDS, r"num_(?:segments|chunks|loops|iterations)|total|iterations|loops|loop_count|max_iterations|rounds"),
)
_ROLES = tuple((role, re.compile(pattern)) for role, pattern in _PATTERNS)
_SIZES = frozenset({Role.WIDTH, Role.HEIGHT, Role.MOST_WIDTH, Role.MOST_HEIGHT})

#: ResizeImageMaskNode's. A bare `multiplier` rarely is a scale.
_SCALE_OF_RESIZE = "resize_type.multiplier"

_TRAITS: tuple[tuple[Trait, str], ...] = (
    (
        Trait.SWITCH,
        r"switch|ifelse|if_else|conditionalbranch|simplecondition|\bselect\b|convertanything|constant number|"
        r"any ?index",
    ),
    (Trait.REPEATS, r"repeat|duplicat|expandbatch|clone"),
    (Trait.INTERPOLATES, r"\bvfi\b|interpolat|\brife\b|inbetween"),
    (
        Trait.CUTS,
        r"frombatch|getimage(?:range|s)|trim|slice|latentcut$|split(?:images|latents|masks)|select(?:images|latents|masks)",
    ),
    (Trait.SOUND, r"audio|music|sound(?!image)"),
    (Trait.CROPS, r"crop"),
    (Trait.PADS, r"pad|outpaint|border|expandcanvas|extend"),
    (Trait.JOINS, r"batch|merge|join|append|concat|combine|list|crossfade|transition|insert|multi(?!pl)"),
    (Trait.STITCHES, r"stitch|imageconc|grid(?!to)|sidebyside|composite(?=\dx\d)"),
    (Trait.TILES, r"(?:to|image|split|make).*tile|gridto"),
    (Trait.SHEET, r"grid(?!to)(?!.*\dx\d)|concatfrombatch|contactsheet"),
    (Trait.LOOPS, r"loop"),
    (Trait.HOLDS, r"adapterweights"),
    (Trait.TURNS, r"rotat|transpose"),
    (Trait.ONE_MASK, r"imagepadforoutpaint$"),
    (Trait.REFITS, r"imagetransform"),
    (Trait.ENLARGES, r"cropfrommask"),
    (Trait.FLAT, r"latentcrop"),
    (Trait.TAKES_FILMS, r"(?:select|get)latents"),
    (Trait.KEEPS, r"promptbuilder|^painter$"),
    (Trait.FOR_CLIP, r"ipadapternoise|prepimageforclip"),
    (Trait.BESIDE, r"prepforiclora"),
    (Trait.LABELS, r"addlabel"),
    (Trait.SEVERAL, r"encodeforsamplerparams|lorasforfluxparams"),
    (Trait.LIMITS, r"constrain"),
    (Trait.SCALES, r"scale|resize|resample|upsampl|crop(?:to|by|from)|uncrop"),
    (Trait.PLUS, r"add$|sum$|plus"),
    (Trait.MINUS, r"sub$|subtract|minus"),
    (Trait.TIMES, r"mul$|multiply|multiple$"),
    (Trait.OVER, r"div$|divide"),
    (Trait.COUNTS, r"(?:length|count|len)\W*$"),
    (Trait.CALCULATES, r"math|calculat|expression|formula|evaluat"),
    (Trait.ROUNDS_OFF, r"simplemath"),
    (Trait.PICKS, r"random|clamp|slider"),
    (
        Trait.HANDS_ON,
        r"primitive|constant|literal|reroute|^seednode$|convert|multiline|preview|display|show|dummyout|getnode|setnode|"
        r"simplemath(?:int|float|percent|boolean)|"
        r"(?:^|\W|_)(?:int|integer|float|number|string|text|bool|boolean|seed|value|any)s?(?:\W|_|$)|"
        r"(?:int|integer|float|number|string|boolean|seed|slider|combo)\W*$",
    ),
)
_TRAIT_PATTERNS = tuple((trait, re.compile(pattern)) for trait, pattern in _TRAITS)


@functools.lru_cache(maxsize=4096)
def find_role(name: str) -> Role | None:
    """What an input's number sets; None: nothing that counts. Names have `LONGEST` characters at most."""
    if name == _SCALE_OF_RESIZE:
        return Role.SCALE
    leaf = name.rpartition(".")[2].lower()
    for role, pattern in _ROLES:
        if pattern.fullmatch(leaf):
            return None if role in _SIZES and _NO_SIZE.search(leaf) else role
    return None


@functools.lru_cache(maxsize=4096)
def find_traits(class_type: str) -> frozenset[Trait]:
    """What a class does, by its name, of `LONGEST` characters at most."""
    lower = class_type.lower()
    return frozenset(trait for trait, pattern in _TRAIT_PATTERNS if pattern.search(lower))
