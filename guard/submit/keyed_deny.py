"""The node classes that prompts of keys may not use, as shipped; `policy.keyed_deny_nodes` changes the list.

From the sources of ComfyUI 0.33 and of 50 of the most installed packs. A class stands here if a prompt's own words lead
it out of the folders that its owner has: it writes, reads, deletes or calls where the prompt says, or runs what the
prompt says. `*` and `?` are wild. What only names a file in ComfyUI's own folders needs no place here, because the
guard leads that into the owner's folder.
"""

#: Write to a folder that the prompt names, outside the output folder too.
_WRITE = (
    # ComfyUI: a prefix with `..` leaves the folder, and the folder is the shared input or that of the datasets.
    "SaveImageDataSetToFolder",
    "SaveImageTextDataSetToFolder",
    "SaveTrainingDataset",
    # KJNodes
    "SaveImageKJ",
    "SaveStringKJ",
    "VisualizeCUDAMemoryHistory",
    # was-node-suite: they also expand tokens in a path after anybody could check it.
    "Image Save",
    "Save Text File",
    "Export API",
    "Create Morph Image",
    "Create Morph Image from Path",
    "Write to GIF",
    "Write to Video",
    "Create Video from Path",
    "Video Dump Frames",
    "Cache Node",
    # Comfyroll
    "CR Output Flow Frames",
    "CR Output Schedule To File",
    "CR Save Text To File",
    "CR XY Save Grid Image",
    # Savers that put other inputs into the path.
    "Image Saver",
    "Image Saver Simple",
    "Save Image w/Metadata",
    "SaveImageExtended",
    # LayerStyle, easy-use, Custom-Scripts, bmad, AdvancedLivePortrait, LogicUtils, mtb, ReActor
    "LayerUtility: ImageTaggerSave*",
    "easy saveText*",
    "easy saveImageLazy",
    "SaveText|pysssss",
    "Save Image (api)",
    "CreateRequestMetadata",
    "Get Models",
    "Get Prompt",
    "SaveExpData",
    "Save Text Custom Node",
    "SaveTextCustomNode",
    "Save Tensors (mtb)",
    "Save Image Sequence (mtb)",
    "Postshot Export (mtb)",
    "Add To Playlist (mtb)",
    "ReActorSaveFaceModel",
    "ReActorBuildFaceModel",
    # 3D-Pack
    "[Comfy3D] Save 3D*",
    # Lora-Training-in-Comfy: they run a trainer on any folder, too.
    "Lora Training in*",
    "Tensorboard Access",
)

#: Delete files.
_DELETE = (
    "VHS_PruneOutputs",  # VideoHelperSuite; deletes what earlier jobs have made
    "easy removeLocalImage",
    "clear_file",  # these two: LLM_party
    "FolderCleaner",
)

#: Read any file or folder of the server that the prompt names, relative to ComfyUI's folder too.
_READ = (
    "LoadTrainingDataset",  # ComfyUI: the datasets of everybody, and torch's own format
    "LoadImagesFromFolderKJ",
    "LoadVideosFromFolder",
    "CameraPoseVisualizer",  # these two: KJNodes. What they read need not be a picture, and errors quote it
    "PlaySoundKJ",
    "Image Load",
    "Load Image Batch",
    "Load Text File",
    "Load Cache",
    "Text Load Line From File",
    "Create Grid Image",
    "CR Load *",
    "CR XY From Folder",
    "CR Font File List",
    "ADE_LoadCameraPosesFromPath",
    "LoadImagesFromDir //Inspire",
    "LoadImageListFromDir //Inspire",
    "LoadPromptsFrom* //Inspire",
    "LoadSinglePromptFromFile //Inspire",
    "LoadText|pysssss",
    "LayerUtility: LoadImagesFromPath",
    "Read JSON file *",
    "Random * Picker (Image Saver)",
    "Load Image Sequence (mtb)",
    "Read Playlist (mtb)",
    "AILab_LoadImage*",
    "[Comfy3D] Load 3D*",
    "easy loadImagesForLoop",
    "load_file*",  # from here: LLM_party
    "load_img_path",
    "load_persona",
    "load_memo",
    "json_parser",
    "image_iterator",
    "file_path_iterator",
    "KG_*_toolkit_*",
    "srt2txt",
    "start_workflow",
)

#: Run what the prompt says: Python, or another workflow past the guard.
_RUN = (
    "VHS_BatchManager",  # VideoHelperSuite; puts the prompt back into ComfyUI's queue by itself, as nobody's, for ever
    "easy simpleMath*",
    "AnyToAny",  # these four: bmad
    "Filter Contour",
    "FindThreshold",
    "BuildColorRangeAdvanced (hsv)",
    "Canvas",  # from here: LLM_party
    "workflow_transfer*",
    "Mcp_tool",
    "discord_*",
)

#: Take pictures of this machine: of its screen, or by its camera. What does so unnamed is stopped as it runs, but what
#: an operator's job has taken, ComfyUI may have kept.
_SEE = (
    "ImageGrabPIL",  # KJNodes
    "Screencap_mss",
    "WebcamCaptureCV2",
)

#: Send what they get to an address, or load from one, that no input need spell out.
_CALL = (
    "Image Send HTTP",
    "LoadImageFromUrl",  # art-venture
    "LoadImageAsMaskFromUrl",
    "LoadJsonFromUrl",
    "Load Image From Url (mtb)",
    "Download Image from URL",
    "URL2IMG",  # from here: LLM_party
    "load_url",
    "api_function",
    "img_hosting",
    "FileOnline*",
    "Dingding",
    "feishu",
    "Feishu*",
    "work_wechat",
    "send_to_wechat_official",
)

KEYED_DENY_NODES: tuple[str, ...] = (*_WRITE, *_DELETE, *_READ, *_RUN, *_SEE, *_CALL)
