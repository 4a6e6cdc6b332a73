"""Write the CycloneDX bill of materials of a built wheel beside it: `python .ci/sbom.py dist/NAME.whl`.

It says what the wheel itself says: name, version, licence, hash, and each requirement with the range of its versions,
optional if an extra asks for it. The same wheel gives the same bytes.
"""

from __future__ import annotations

import hashlib
import sys
import uuid
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def metadata(wheel: Path) -> Message:
    """Return the METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def bill(wheel: Path) -> Bom:
    """Return the bill of materials of a wheel."""
    about, digest = metadata(wheel), hashlib.sha256(wheel.read_bytes()).hexdigest()
    own = canonicalize_name(about["Name"])
    root = Component(
        name=about["Name"],
        version=about["Version"],
        type=ComponentType.LIBRARY,
        bom_ref=own,
        purl=PackageURL("pypi", None, own, about["Version"]),
        licenses=[LicenseFactory().make_from_string(about["License-Expression"])],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )
    stated: dict[str, list[Requirement]] = {}
    for line in about.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        stated.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    stated.pop(own, None)  # an extra that includes other extras
    parts = []
    for name, requirements in sorted(stated.items()):
        optional = all("extra" in str(requirement.marker) for requirement in requirements)
        part = Component(
            name=name,
            type=ComponentType.LIBRARY,
            bom_ref=f"{own}/{name}",
            purl=PackageURL("pypi", None, name),
            scope=ComponentScope.OPTIONAL if optional else ComponentScope.REQUIRED,
            properties=[Property(name="Requires-Dist", value=str(requirement)) for requirement in requirements],
        )
        parts.append(part)
    made = Bom(components=parts, serial_number=uuid.uuid5(uuid.NAMESPACE_OID, digest))
    made.metadata.component = root
    made.register_dependency(root, parts)
    return made


def main() -> None:
    """Write the document beside the wheel, once it is checked against CycloneDX's schema."""
    wheel = Path(sys.argv[1])
    made = bill(wheel)
    made.metadata.timestamp = None  # when it was written says nothing about the wheel
    text = JsonV1Dot6(made).output_as_string(indent=2)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem:
        raise SystemExit(f"not a CycloneDX document: {problem}")
    wheel.with_suffix(".cdx.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
