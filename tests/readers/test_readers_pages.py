"""HTML, XHTML, Markdown and encodings: which text of a page is read."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from reading import read, texts, write

from m3_connectors.errors import InvalidInput
from m3_connectors.readers import ReadOptions
from m3_connectors.readers.html import html_to_text
from m3_connectors.readers.xhtml import xhtml_to_text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<head><title>A &amp; B</title><style>p{}</style></head><p>One<p>Two", "A & B\nOne\nTwo"),
        ("<p>a<script>if (a < b) { '</p>' }</script>b", "ab"),
        ("<b>wo</b>rd<br>next&nbsp;line &eacute;&#x4e2d;", "word\nnext line é中"),
        ("<ul><li>one</li><li>two</li></ul>", "one\ntwo"),
        ("<div>split\n  over   lines</div>", "split over lines"),
        ("<svg><title>icon</title><text>no</text></svg>seen", "seen"),
        ("<head><meta charset=x><body>no closing head", "no closing head"),
        ("no markup, 1 < 2", "no markup, 1 < 2"),
        (
            "<!doctype html><html><head><title>Omitted</title><h1>Visible</h1><p>Body text",
            "Omitted\n# Visible\nBody text",
        ),
        ("<title>T</title><ul><li>a<li>b</ul><table><tr><td>c<td>d</table>", "T\na\nb\nc\nd"),
        ("<head><script src=x></script><div>in the head</div></head><p>b", "in the head\nb"),
        ("<title>One\nline</title><body><title>Two</title>x", "One line\nTwo\nx"),
        ("<p>a<!-- <p>b --><!c><?d?>e", "ae"),
        ("<iframe><p>i</iframe><noframes><p>n</noframes><noscript>s</noscript>seen", "seen"),
        ("<p title='>'>a</p id=1>b", "a\nb"),
        ("<textarea>typed</textarea><select><option>o<option>p</select>", "typed\no\np"),
        ("", ""),
        ("a\0b &#xD800; &#0;", "ab \ufffd \ufffd"),
    ],
)
def test_html_to_text(html: str, text: str) -> None:
    assert html_to_text(html) == text


def test_html_that_would_take_minutes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nested too deeply"):
        html_to_text("<div>" * 200_000 + "x")
    assert html_to_text("<p>x" * 100_000).count("x") == 100_000
    assert html_to_text("<div>" * 5_000 + "deep") == "deep"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p>a<br/>b</p><script src='x'/><p>c</p>", "a\nb\nc"),
        ("<p>T&eacute;xt&nbsp;&amp; &#x4e2d; &unknown;</p>", "Téxt & 中 &unknown;"),
        ("<svg><title>i</title></svg><p><![CDATA[1 < 2]]></p><!-- c -->", "1 < 2"),
    ],
)
def test_xhtml_to_text(body: str, text: str) -> None:
    head = "<head><title/><style>p{}</style></head>"
    assert xhtml_to_text(f"<?xml version='1.0'?><html>{head}<body>{body}</body></html>") == text
    titled = (
        f"<x:html xmlns:x='http://www.w3.org/1999/xhtml'><x:head><x:title>T</x:title></x:head>{body}</x:html>"
    )
    assert xhtml_to_text(titled) == f"T\n{text}"


def test_xhtml_that_is_not_well_formed_is_named(tmp_path: Path) -> None:
    _, (letter,) = read(write(tmp_path / "a.xhtml", "<html>\n<p>a</html>"))
    assert "not well-formed XHTML at line 2" in letter.reason
    bomb = '<!DOCTYPE html [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    _, (letter,) = read(write(tmp_path / "b.xhtml", bomb + "]><html>&i;</html>"))
    assert "amplification" in letter.reason


class TestEncodings:
    @pytest.mark.parametrize(
        ("label", "raw", "text"),
        [
            ("utf-16", "café".encode(), "café"),
            ("utf-16le", "café".encode(), "café"),
            ("UTF8", "café".encode(), "café"),
            ("iso-8859-1", b"it\x92s 5 \x80", "it\u2019s 5 €"),
            ("us-ascii", b"caf\xe9", "café"),
            ("latin1", b"caf\xe9", "café"),
            ("windows-1252", b"a\x81b", "a\x81b"),
            ("gb2312", "镕€㐀".encode("gb18030"), "镕€㐀"),
            ("gbk", "丂𠀀".encode("gb18030"), "丂𠀀"),
            ("shift_jis", "①あ".encode("cp932"), "①あ"),
            ("x-sjis", "①あ".encode("cp932"), "①あ"),
            ("euc-kr", "똠방".encode("cp949"), "똠방"),
            ("ks_c_5601-1987", "똠방".encode("cp949"), "똠방"),
            ("big5", "中文".encode("big5"), "中文"),
            ("koi8-r", "Привет".encode("koi8-r"), "Привет"),
            ("x-user-defined", b"caf\xe9", "café"),
            ("no-such", "café Привет".encode(), "café Привет"),
            ("undefined", b"we met at the caf\xe9", "we met at the café"),
            ("idna", b"we met at the caf\xe9", "we met at the café"),
            ("rot13", b"plain", "plain"),
            ("", b"we met at the caf\xe9", "we met at the café"),
        ],
    )
    def test_encoding_labels_have_the_meaning_of_browsers(
        self, tmp_path: Path, label: str, raw: bytes, text: str
    ) -> None:
        declaration = f'<meta charset="{label}"><p>'.encode() if label else b"<p>"
        assert texts(write(tmp_path / "a.html", declaration + raw)) == {"a.html": text}
        if label:
            content = f"<meta content='text/html; charset={label}' http-equiv='CONTENT-TYPE'><p>".encode()
            assert texts(write(tmp_path / "a.html", content + raw)) == {"a.html": text}

    @pytest.mark.parametrize("name", ["a.html", "a.xhtml"])
    def test_an_xml_declaration(self, tmp_path: Path, name: str) -> None:
        page = '<?xml version="1.0" encoding="koi8-r"?><html><body><p>Привет</p></body></html>'
        assert texts(write(tmp_path / name, page.encode("koi8-r"))) == {name: "Привет"}

    @pytest.mark.parametrize(
        "before",
        [
            "<!-- <meta charset=koi8-r> -->",
            "<meta name=description content='charset=koi8-r'>",
            "<script>'<meta charset=koi8-r>'</script>",
            "<meta charset=no-such><meta charset=utf-8><meta charset=koi8-r>",
        ],
    )
    def test_what_is_no_declaration(self, tmp_path: Path, before: str) -> None:
        assert texts(write(tmp_path / "a.html", f"{before}<p>é")) == {"a.html": "é"}

    @pytest.mark.parametrize("text", ["Привет, мир", "καλημέρα", "日本語"])
    def test_a_page_in_another_alphabet_without_a_label_is_not_guessed(
        self, tmp_path: Path, text: str
    ) -> None:
        codec = {"П": "koi8-r", "κ": "iso-8859-7", "日": "euc_jp"}[text[0]]
        path = write(tmp_path / "a.html", f"<p>Hello, {text} and a few words more".encode(codec))
        documents, (letter,) = read(path)
        assert (documents, letter.line) == ([], None)
        assert "--encoding" in letter.reason
        named = texts(path, options=ReadOptions(encoding=codec))
        assert named == {"a.html": f"Hello, {text} and a few words more"}

    def test_bytes_that_are_not_of_the_declared_encoding_are_named(self, tmp_path: Path) -> None:
        _, (letter,) = read(write(tmp_path / "a.html", b"<meta charset=utf-8><p>caf\xe9"))
        assert letter.reason.startswith("not UTF-8 at byte 26")
        _, (letter,) = read(write(tmp_path / "a.html", b"<meta charset=iso-2022-kr><p>x"))
        assert "which browsers reject" in letter.reason

    @pytest.mark.parametrize(
        ("mark", "codec"),
        [
            (codecs.BOM_UTF8, "utf-8"),
            (codecs.BOM_UTF16_LE, "utf-16-le"),
            (codecs.BOM_UTF16_BE, "utf-16-be"),
            (codecs.BOM_UTF32_LE, "utf-32-le"),
            (codecs.BOM_UTF32_BE, "utf-32-be"),
        ],
    )
    def test_a_byte_order_mark_takes_precedence(self, tmp_path: Path, mark: bytes, codec: str) -> None:
        contents = {
            "a.html": "<meta charset=koi8-r><p>naïve 日本",
            "a.txt": "naïve 日本",
            "a.md": "naïve 日本",
            "a.csv": "id,text\na.csv,naïve 日本\n",
            "a.tsv": "id\ttext\na.tsv\tnaïve 日本\n",
            "a.jsonl": '{"id": "a.jsonl", "text": "naïve 日本"}\n',
            "a.json": '[{"id": "a.json", "text": "naïve 日本"}]',
        }
        for name, content in contents.items():
            write(tmp_path / name, mark + content.encode(codec))
        for options in (ReadOptions(), ReadOptions(encoding="koi8-r")):
            assert texts(tmp_path, options=options) == dict.fromkeys(sorted(contents), "naïve 日本")

    def test_records_in_utf_16_without_a_mark(self, tmp_path: Path) -> None:
        for codec in ("utf-16-le", "utf-16-be"):
            write(tmp_path / "a.jsonl", '{"id": "j", "text": "日本"}\n'.encode(codec))
            write(tmp_path / "a.csv", "id,text\nc,日本\n".encode(codec))
            assert texts(tmp_path) == {"c": "日本", "j": "日本"}

    def test_named_encodings(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "id,text\nc,café €\n".encode("cp1252"))
        write(tmp_path / "b.txt", "café €".encode("cp1252"))
        assert texts(tmp_path, options=ReadOptions(encoding="latin1")) == {"c": "café €", "b.txt": "café €"}
        assert texts(write(tmp_path / "c.txt", b"\x82"), options=ReadOptions(encoding="cp850")) == {
            "c.txt": "é"
        }
        for wrong in ("undefined", "rot13", "base64", "idna", "no-such", "\ud800", "x-user-defined", ""):
            with pytest.raises(InvalidInput, match="is not a known encoding"):
                ReadOptions(encoding=wrong)

    def test_a_bad_byte_skips_only_its_record(self, tmp_path: Path) -> None:
        documents, letters = read(write(tmp_path / "a.csv", b"id,text\n1,a\n2,\xff\n3,c\n"))
        assert ([d.id for d in documents], letters[0].line, letters[0].reason) == (["1", "3"], 3, "not UTF-8")


class TestFrontMatter:
    @pytest.mark.parametrize(
        ("markdown", "text"),
        [
            ('---\ntitle: "A: note"\ntags: [x]\n---\n\n# Head\n', "A: note\n# Head\n"),
            ("---\r\ntags:\r\n  - x\r\n---\r\nbody", "body"),
            ("---\ntitle: >\n  two\n  lines\n...\nbody", "two lines\nbody"),
            ("---\nTitle: 1.10\ndate: 2024-13-45\n---\nbody", "1.10\nbody"),
            ("---\nтеги: x\ndate created: y\n---\nbody", "body"),
            ("---\n# a comment\nlayout: x\n---\nbody", "body"),
        ],
    )
    def test_its_title_alone_is_kept(self, tmp_path: Path, markdown: str, text: str) -> None:
        assert texts(write(tmp_path / "a.md", markdown)) == {"a.md": text}
        assert texts(write(tmp_path / "b.txt", markdown)) == {"b.txt": markdown}

    @pytest.mark.parametrize(
        "markdown",
        [
            "---\nNote: approved.\n\nLong section.\n\n## Steps\n\n---\n\nLast line only.\n",
            "---\nNote: approved.\n\n## Steps\n\n---\n\nLast line only.\n",
            "---\nA rule above, none of fields.\n\n---\nend",
            "---\ntitle: never closed\n",
            "text\n---\ntitle: x\n---\n",
            "---\n- a\n- b\n---\nend",
            "---\n---\nend",
            "---\n2024-01-01: began\n---\nend",
            "---\nPlease note, before you read: it is old.\n---\nend",
            '---\ntitle: "unclosed\n---\nend',
            "----\ntitle: x\n----\nend",
            "---\na: *nowhere\n---\nend",
            "---\na: " + "[" * 3000 + "\n---\nend",
            "+++\ntitle = 'x'\n+++\nend",
        ],
    )
    def test_anything_else_between_two_rules_is_text(self, tmp_path: Path, markdown: str) -> None:
        assert texts(write(tmp_path / "a.md", markdown)) == {"a.md": markdown}

    def test_yaml_that_multiplies(self, tmp_path: Path) -> None:
        lines = [
            "a0: &a0 {x: 1}",
            *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)),
        ]
        assert texts(write(tmp_path / "a.md", "---\n" + "\n".join(lines) + "\n---\nbody")) == {"a.md": "body"}
