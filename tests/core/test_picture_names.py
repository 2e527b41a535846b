"""A file's name is a caption where a person wrote it, and nothing where a device did."""

from __future__ import annotations

import pytest

from dreambooth.core import picture_names

BY_DEVICES = [
    "20230504_123456",
    "5a2b3c4d5e6f7a8b",
    "6F9619FF-8B86-D011-B42D-00C04FC964FF",
    "DJI_0001",
    "DSC00012",
    "FB_IMG_1234",
    "GOPR0001",
    "IMG-20200101-WA0001",
    "IMG_0001 (1)",
    "IMG_E0012",
    "P1010001",
    "PXL_20230504_123456789.MP",
    "PXL_20230504_123456789.PORTRAIT",
    "Photo on 2020-01-01 at 10.00",
    "Screenshot 2023-01-01 at 10.00.00",
    "Screenshot_20230101-100000_Instagram",
    "WhatsApp Image 2023-01-01 at 10.00.00",
    "_MG_1234",
    "image0",
    "photo-1518717758536-85ae29035b6d",
    "received_1234567",
    "untitled",
]
BY_PEOPLE = {
    "2 dogs": "2 dogs",
    "DSC00012 dog": "DSC00012 dog",
    "deadbeef": "deadbeef",
    "face0001": "face0001",
    "p": "p",
    "photo of anna": "photo of anna",
    "portrait": "portrait",
    "portrait of sam 3": "portrait of sam",
    "signal": "signal",
    "20230504-123456-sks_dog": "sks dog",
}


@pytest.mark.parametrize("name", BY_DEVICES)
def test_what_a_device_chose_says_nothing(name: str) -> None:
    assert picture_names.words(name) == ""


@pytest.mark.parametrize("name", BY_PEOPLE)
def test_what_a_person_wrote_is_a_caption(name: str) -> None:
    assert picture_names.words(name) == BY_PEOPLE[name]
