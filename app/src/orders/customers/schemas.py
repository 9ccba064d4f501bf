"""What the interface of profiles takes and gives."""

from datetime import datetime
from typing import Annotated

import msgspec

MOST_NAME, MOST_LINE, MOST_LINES, MOST_CITY, MOST_POSTAL_CODE = 200, 100, 4, 100, 16

# Text of one line with something in it. `$` alone would let a line's end pass.
TEXT_PATTERN = r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$(?!\n)"
# Empty where a country has none.
POSTAL_CODE_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9 -]*)?$(?!\n)"
CUSTOMER_PATTERN = r"^[A-Za-z0-9._-]{1,64}$(?!\n)"
# ISO 3166-1, alpha-2.
_CODES = (
    "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG"
    " CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL"
    " GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA"
    " LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP"
    " NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV"
    " SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW"
)
COUNTRIES = tuple(_CODES.split())

Line = Annotated[str, msgspec.Meta(pattern=TEXT_PATTERN, max_length=MOST_LINE)]


class Address(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where post reaches somebody."""

    lines: Annotated[list[Line], msgspec.Meta(min_length=1, max_length=MOST_LINES)]
    city: Annotated[str, msgspec.Meta(pattern=TEXT_PATTERN, max_length=MOST_CITY)]
    postal_code: Annotated[str, msgspec.Meta(pattern=POSTAL_CODE_PATTERN, max_length=MOST_POSTAL_CODE)]
    country: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{2}$(?!\n)", description="ISO 3166-1, two letters.")]


class NewProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a profile is to be, all of it."""

    name: Annotated[str, msgspec.Meta(pattern=TEXT_PATTERN, max_length=MOST_NAME)]
    address: Address


class Profile(msgspec.Struct, frozen=True):
    """What a customer said; `etag` is for If-Match."""

    name: str
    address: Address
    changed_at: datetime
    etag: str
