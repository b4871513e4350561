"""From files to batches: the index of a dataset, packs, decoding, augmentation, order, the loader, drawn images.

Must not know: models, the clock, what an epoch means to training.
"""

from vit24h.data.augment import Draws, EvalTransform, Operation, TrainTransform
from vit24h.data.device import DeviceAugment, DeviceCopy
from vit24h.data.index import DamagedEntryError, Dataset, FolderIndex, ImageSource, open_dataset
from vit24h.data.loader import (
    Batch,
    BatchPlan,
    DatasetGoneError,
    EvalLoader,
    LoaderFault,
    TrainLoader,
    WorkerKilledError,
)
from vit24h.data.order import EpochOrder
from vit24h.data.pack import PackIndex
from vit24h.data.synthetic import draw_images

__all__ = [
    "Batch",
    "BatchPlan",
    "DamagedEntryError",
    "Dataset",
    "DatasetGoneError",
    "DeviceAugment",
    "DeviceCopy",
    "Draws",
    "EpochOrder",
    "EvalLoader",
    "EvalTransform",
    "FolderIndex",
    "ImageSource",
    "LoaderFault",
    "Operation",
    "PackIndex",
    "TrainLoader",
    "TrainTransform",
    "WorkerKilledError",
    "draw_images",
    "open_dataset",
]
