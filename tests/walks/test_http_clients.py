"""Clients that ask for HTTP/2 in an HTTP/1.1 request: they must just work, with their bodies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.programs import needs
from tests.walks.gateway import RunningGateway

ASK = json.dumps({"model": "general", "messages": [{"role": "user", "content": "How many days has a week?"}]})
JAVA = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Ask {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 2; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0]))
                .header("Authorization", "Bearer " + args[1]).header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(args[2])).build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
"""


async def output_of(*command: str) -> str:
    """A command's output."""
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@needs("java", "javac")
async def test_javas_http_client_works_with_its_defaults(gateway: RunningGateway, tmp_path: Path) -> None:
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    url = f"{gateway.url}/v1/chat/completions"
    first, second = (await output_of("java", str(source), url, gateway.admin_key, ASK)).strip().split("\n")
    for line in (first, second):
        status, _, body = line.partition(" ")
        assert (status, json.loads(body)["object"]) == ("200", "chat.completion")


@needs("curl")
@pytest.mark.parametrize("stream", [False, True])
async def test_curl_works_when_it_asks_for_http2(gateway: RunningGateway, stream: bool) -> None:
    body = json.dumps({**json.loads(ASK), "stream": stream})
    url = f"{gateway.url}/v1/chat/completions"
    headers = ("-H", f"authorization: Bearer {gateway.admin_key}", "-H", "content-type: application/json")
    told = await output_of("curl", "-sS", "--http2", "-N", "-w", "%{http_code}", *headers, "-d", body, url)
    assert told.endswith("200")
    assert ("data: [DONE]" in told) == stream
