"""Pictures that clients have given: normalised, kept under an id, referred to by it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class UploadedImage(BaseModel):
    """A picture that requests can refer to by its `id`."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["image"] = "image"
    url: str = Field(description="Path on this server.")
    media_type: str
    width: int = Field(description="In pixels, upright.")
    height: int
    bytes: int = Field(description="Of the file as it is kept, which is not the one that was sent.")
    sha256: str
