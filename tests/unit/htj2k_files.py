# SPDX-License-Identifier: Apache-2.0
"""Images that OpenJPH has compressed with HTJ2K; nothing that the tests require writes it."""

from __future__ import annotations

import base64
import copy

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid

from lib.dicom.htj2k import NAMES
from tests.unit import dicom_files

SYNTAXES = tuple(NAMES)
ROWS, COLUMNS = 10, 12

STREAMS = {
    "uint8": (
        "|4;u>04YEK0000C0000A00000000000000C0000A0000000000009R90sl|{2mk^A000C3QUDA90ssL30t5s=0smY83LsEeSXfX{"
        "SpQ@I761WHaAj^vP)HzFWpW@eE;%kRF8`1K3IG5A005f+0soW07Lfk~m7op*uvz{95SRP_19`aszzWy_R{$!&OsxKQ5%UB~f5`l|"
        "06GAy4DA2_fxK1#as-jU_5c6?yjB3f7Q_K<zzawi_CKEApPw=;&(DLyFNiy|xKTY^B3uCe$Lq`Equ29aqyP>M4$i<0E&UISKuatG"
        "+yMUnU*GTF|9`><eMAsFTtnIb|Je"
    ),
    "uint16": (
        "|4;u>04YEK0000C0000A00000000000000C0000A0000000000009pH0sl|{2mk^A000aBQUDA90ssL30t5s=0smY83Lub}n3#}|"
        "nEzw|761WHaAj^vP)HzFWpW@eE;%kRF8`1K3IG5A003nG0soW002a{yf5HBr_F?t*^{e`={{g)#{U}S#2mtxG0KfnWr~m;lL?w!-"
        "f{)^hb^w|D19wyazyKAn00nSXtXQ#P<=lcgasqb%PN&o9bpG@R-VlMlxB&mz"
    ),
    "colour": (
        "|4;u>053oQ0000C0000A00000000000000C0000A000000000000RdB0S5sA2LS>9Pyh%30ssI21piV13;+TE0RaL81V91*TmT9n"
        "SYTjaSXf~HWB?Wb0Z(vcZc0!{AXa5^ATTaDE-)_tkN^q*00001(f|SflfVklptssz+x-Dc{z<==0Kf}G`-fe0C#KNp^$bhQ0Recp"
        "0Kf}O{SQ_O-7pB$T>bzUm;50EdAR_<1xx@>026>!Qb9}pmHu}CU`Y8Cbd&%c;{6P~Q~<yQd;nHJ1z5}wZNEl_{s9tyz!3bn09XVN"
        "pm6p85dpkb04xW3qVxa&0erRqzy*8&RzL+{7;*9Y-H7u75`VxD{I~#g2w>&#{QwaGyjB3_5{wMo{s0hwyjB3f3sL}D@BwQ80K^Ck"
        "W)NEg76rAxr!xC`QpI}!0E}R3Aa(!<aLOqF(%<oTB76<=^?U#T0Nw$B_Iv;U0R9fA_>ctqK4PVN0Kf~OfEPyq7e)X8fXM(F003Pu"
        "9bLLyFy#JnApi^F4(&KF0VqTet-b&N004jhT>wx3ATX^^Fns`L4_H}QS^ZkK^tfXH6haWKyZ`_I004l19smH)2MpW?00__r00000"
        "`~|ju+%W*CMi8yM0Kf}w09&vDX@D}>|6}LxpFhiF`TY6FzykQgyGw=uJzPRv0RA6ezkK}Y>+^q+1?0$)Bj>;kE&UIWU`s3`+yMUn"
        "fBpUa_y2#x2Yp5$JzQhj0RPz"
    ),
}
"""`ojph_compress -reversible true -num_decomps 2` of `pixels`, in base 85."""


def pixels(kind: str) -> NDArray[np.generic]:
    """The image (row, column[, 3]) in a stream."""
    row, column = np.mgrid[:ROWS, :COLUMNS]
    if kind == "uint16":
        return (column * 300 + row * 40).astype(np.uint16)
    grey = ((column * 13 + row * 29) % 256).astype(np.uint8)
    return grey if kind == "uint8" else np.stack([grey, 255 - grey, grey // 2], -1)


def images(kind: str, name: str, count: int = 3) -> list[Dataset]:
    """A series of the image `kind`, not compressed; in colour, it is one picture."""
    plane = pixels(kind)
    if kind == "colour":
        found = dicom_files.picture("ES", colour=True, shape=(COLUMNS, ROWS), name=name)
    else:
        found = dicom_files.volume("MR", (COLUMNS, ROWS, count), name)
    for image in found:
        image.Rows, image.Columns = ROWS, COLUMNS
        image.BitsAllocated = image.BitsStored = plane.dtype.itemsize * 8
        image.HighBit, image.PixelRepresentation = plane.dtype.itemsize * 8 - 1, 0
        image.PixelData = plane.tobytes()
    return found


def compressed(plain: list[Dataset], kind: str, syntax: str = SYNTAXES[0]) -> list[Dataset]:
    """The series of `images`, compressed."""
    found = []
    for image in copy.deepcopy(plain):
        image.PixelData = encapsulate([base64.b85decode(STREAMS[kind])])
        image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
        image.file_meta.TransferSyntaxUID = syntax
        found.append(image)
    return found


def films(kind: str, count: int = 3) -> tuple[list[Dataset], list[Dataset]]:
    """A multi-frame image, not compressed and compressed."""
    [film] = dicom_files.cine(count, (COLUMNS, ROWS))
    plane = pixels(kind)
    film.PixelData = plane.tobytes() * count
    packed = copy.deepcopy(film)
    packed.SOPInstanceUID = packed.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    packed.PixelData = encapsulate([base64.b85decode(STREAMS[kind])] * count)
    packed["PixelData"].VR, packed["PixelData"].is_undefined_length = "OB", True
    packed.file_meta.TransferSyntaxUID = SYNTAXES[1]
    return [film], [packed]
