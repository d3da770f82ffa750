import pytest

from ldm.data.sources.csv_rows import read_csv
from ldm.errors import UserError


def read(text: str) -> list[dict]:
    return read_csv(text, "t.csv", "path", ("path", "caption"))


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_commas_semicolons_and_tabs_separate(sign: str) -> None:
    text = 'path;caption;score\na.jpg;"red; green, and\tblue";3\n'.replace(";", sign)
    assert read(text) == [{"path": "a.jpg", "caption": f"red{sign} green, and\tblue", "score": 3}]


def test_the_separator_is_the_one_that_names_the_path() -> None:
    assert read('"caption, long or short";path\nred, round;a.jpg\n') == [
        {"caption, long or short": "red, round", "path": "a.jpg"}
    ]
    assert read("caption\npath;1\n") == [{"caption": "path;1"}]  # no path column: the caller says so


@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("line", "count"), [("a.jpg;a red circle; left of a square", 3), ("a.jpg", 1), ("a.jpg;b;c;d", 4)]
)
def test_a_row_of_another_length_is_rejected(sign: str, line: str, count: int) -> None:
    """An unquoted separator in a caption would cut it."""
    text = f'path;caption\n\nb.jpg;"two\nlines"\n{line}\n'.replace(";", sign)
    name = {",": "comma", ";": "semicolon", "\t": "tab"}[sign]
    advice = (
        "add those that are missing" if count == 1 else f"put quotes around a text that contains a {name}"
    )
    with pytest.raises(UserError, match=rf"^line 5 of t.csv has {count} cells? and the header 2: {advice}"):
        read(text)


@pytest.mark.parametrize(
    "lines",
    [
        'a.jpg,"open',
        'a.jpg,"open\nb.jpg,"closed"',
        'a.jpg,"a "red" circle"',
        r'a.jpg,"a \"red\" circle"',
        'a.jpg,"red" circle',
        '"a.jpg,red\nb.jpg,green',
    ],
)
def test_unbalanced_quotes_are_rejected_with_the_line_where_they_begin(lines: str) -> None:
    with pytest.raises(UserError, match=r"row that begins in line 3 of t.csv has unbalanced quotes \("):
        read(f"path,caption\nz.jpg,ok\n{lines}\n")


def test_quotes_and_spaces() -> None:
    text = 'path, caption\na.jpg,"a ""red"" circle"\nb.jpg, "red, green"\nc.jpg,a 5" pipe\nd.jpg,\n,,\n'
    with pytest.raises(UserError, match="line 6 .* 3 cells"):
        read(text.replace(",,\n", ",,x\n"))
    assert [row["caption"] for row in read(text.replace(",,\n", ",\n\n"))] == [
        *('a "red" circle', "red, green", 'a 5" pipe', "")
    ]


def test_columns_need_distinct_names() -> None:
    with pytest.raises(UserError, match="t.csv has two columns 'caption': rename or remove one"):
        read("path,caption,caption\na,b,c\n")
    assert read(",path,caption,\n0,a,b,\n1,c,d,e\n") == [  # pandas' row numbers
        {"path": "a", "caption": "b"},
        {"path": "c", "caption": "d"},
    ]


def test_columns_of_numbers_are_parsed() -> None:
    text = (
        "path,caption,n,x,boxes,word,code,gap,nan\n"
        '1,2,3,-0.5,"[[0, 0.1, 0.2, 0.9, 1]]",4,007,,nan\n'
        '5,6,7,1e3,"{""a"": true}",four,008,8,1\n'
    )
    first, second = read(text)
    assert first.pop("nan") != first  # nan
    assert first == {
        **{"path": "1", "caption": "2", "n": 3, "x": -0.5, "boxes": [[0, 0.1, 0.2, 0.9, 1]]},
        **{"word": "4", "code": "007"},
    }
    assert second == {
        **{"path": "5", "caption": "6", "n": 7, "x": 1000.0, "boxes": {"a": True}, "word": "four"},
        **{"code": "008", "gap": 8, "nan": 1},
    }


def test_cells_that_python_cannot_parse_stay_text() -> None:
    for cell in ("[" * 100_000, "1" * 5000, "null", '""a""', "1_000"):
        assert read(f'path,caption,x\na,b,"{cell}"\n')[0]["x"] == cell.replace('""', '"')


def test_a_long_field_is_read() -> None:
    assert len(read(f"path,caption\na,{'x' * 180_000}\n")[0]["caption"]) == 180_000


@pytest.mark.parametrize("text", ["", "\n", "path,caption\n", "path,caption\n,\n\n"])
def test_a_table_without_rows(text: str) -> None:
    assert read(text) == []
