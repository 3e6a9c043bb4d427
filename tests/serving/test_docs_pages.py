"""/docs and /redoc load nothing from elsewhere, also behind a proxy's prefix and with a key."""

import re

import httpx
import pytest

from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline

KEY = "k3y-of-this-test"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("prefix", ["", "/sdxl"])
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_loads_only_files_of_this_server(prefix, path):
    with (
        serve(FakePipeline(), name="docs", root_path=prefix) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        page = client.get(prefix + path)
        assert page.headers["content-type"].startswith("text/html")
        assert "img-src 'self' data:" in page.headers["content-security-policy"]
        assert not re.findall(r"""["'](?:https?:)?//[^"']+""", page.text)
        loaded = re.findall(r"""(?:src|href|spec-url)=["']([^"']+)""", page.text)
        loaded += re.findall(r"url: '([^']+)'", page.text)
        assert f"{prefix}/openapi.json" in loaded
        assert len(loaded) >= 3
        for file in loaded:
            assert file.startswith(prefix + "/")
            answer = client.get(file)
            assert answer.status_code == 200
            assert "http://" not in str(answer.headers)


@pytest.mark.parametrize("prefix", ["", "/sdxl"])
def test_the_bare_address_leads_to_the_docs(prefix):
    with serve(FakePipeline(), name="docs", root_path=prefix) as server:
        sent_on = httpx.get(f"{server.url}{prefix}/")
        assert sent_on.status_code == 307
        assert sent_on.headers["location"] == f"{prefix}/docs"
        page = httpx.get(f"{server.url}/", follow_redirects=True)
        assert "swagger" in page.text.lower()
        assert "/" not in httpx.get(f"{server.url}/openapi.json").json()["paths"]


@pytest.mark.parametrize("prefix", ["", "/sdxl"])
def test_with_a_key_the_page_asks_a_browser_for_it(prefix):
    with (
        serve(FakePipeline(), name="docs", root_path=prefix, api_key=KEY) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        page = client.get("/docs", headers=BROWSER)
        assert page.status_code == 401
        assert page.headers["www-authenticate"].startswith("Bearer")
        assert page.headers["server-timing"]
        assert 'type="password"' in page.text
        assert f'"prefix": "{prefix}"' in page.text
        assert not re.findall(r"https?://", page.text)
        assert client.get("/", headers=BROWSER).text == page.text
        for path in ("/docs-files/swagger-ui-bundle.js", "/openapi.json", "/redoc"):
            assert client.get(path, headers=BROWSER).json().keys() == {"detail", "request_id"}
        bearer = {"Authorization": f"Bearer {KEY}"}
        for path in ("/docs-files/swagger-ui-bundle.js", "/docs-files/swagger-ui.css", "/docs"):
            assert client.get(prefix + path, headers=bearer).status_code == 200


def test_the_schema_says_what_needs_the_key():
    with serve(FakePipeline(), name="docs", api_key=KEY) as server:
        bearer = {"Authorization": f"Bearer {KEY}"}
        for _ in range(2):
            schema = httpx.get(f"{server.url}/openapi.json", headers=bearer).json()
            assert schema["security"] == [{"ApiKey": []}]
            scheme = {"ApiKey": {"type": "http", "scheme": "bearer"}}
            assert schema["components"]["securitySchemes"] == scheme
            is_open = {"/health", "/images/{name}"}
            for path in is_open:
                assert schema["paths"][path]["get"]["security"] == []
            assert "security" not in schema["paths"]["/ready"]["get"]
            for path, routes in schema["paths"].items():
                for route in routes.values():
                    refused = {"401", "4XX"} & route["responses"].keys()
                    assert bool(refused) == (path != "/health"), path
    with serve(FakePipeline(), name="docs") as server:
        assert "security" not in httpx.get(f"{server.url}/openapi.json").json()


def test_each_route_says_what_it_is_for():
    """Without words of its own, a route is shown by the name of its function."""
    with serve(FakePipeline(), name="docs") as server:
        paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    for path, routes in paths.items():
        for route in routes.values():
            assert " " in route["summary"], path
            assert not route["summary"].istitle(), f"{path}: {route['summary']}"
