import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gliomap.data.mapping import (
    MOST_VISITS,
    NameMapping,
    name_patients,
    named_in,
    named_studies,
    read_mapping,
    unjoined_years,
)
from gliomap.data.study import Study
from gliomap.errors import InputError

BRATS2020 = (
    "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID\n"
    "HGG,Brats17_XX_AA_1,Brats18_XX_AA_1,NA,BraTS19_XX_AA_1,BraTS20_Training_901\n"
    "HGG,NA,NA,TCGA-99-0001,BraTS19_YY01_22_1,BraTS20_Training_902\n"
    "LGG,NA,NA,TCGA-99-0002,NA,BraTS20_Training_903\n"
)
GLI_2017_TO_2023 = (
    "BraTS2023,BraTS2021,BraTS2020,BraTS2019,BraTS2018,BraTS2017,Cohort Name (if publicly available),"
    "Site No (represents the originating institution),Local ID \n"
    "BraTS-GLI-90001-000,BraTS2021_90001,BraTS20_Training_901,N/A,N/A,N/A,TCGA-GBM,1,TCGA-99-0007\n"
    "BraTS-GLI-90002-000,BraTS2021_90002,N/A,N/A,N/A,N/A,Private Collection 5,1,N/A\n"
    "BraTS-GLI-90003-000,BraTS2021_90003,,,,,Private Collection 5,1,\n"
)
TCIA_2021 = (
    "Data Collection (as on TCIA+additional),Site ID,PatientID on TCIA Radiology Portal,Study date (m/d/yyyy) per PatientID,"
    "BraTS2021 ID,Segmentation (Task 1) Cohort,MGMT (Task 2) Cohort,MGMT value\n"
    "TCGA-GBM,1,TCGA-99-0002,1/1/2001,BraTS2021_90010,Training,Training,1\n"
    "Collection 5,1,new-not-previously-in-TCIA,1/1/2001,BraTS2021_90011,Training,Training,1\n"
    "Collection 5,1,new-not-previously-in-TCIA,1/1/2001,BraTS2021_90012,Training,Training,1\n"
    "UCSF-PDGM,18,57,1/1/2001,BraTS2021_90013,Training,Training,0\n"
    "UCSF-PDGM,18,57,5/5/2001,BraTS2021_90014,Training,Training,0\n"
)


def table(tmp_path, text, name="mapping.csv"):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


def studies(*ids):
    return [Study(i, {}) for i in ids]


def groups(found, *mappings):
    """The sets of study ids that are one patient's."""
    patient_of = name_patients(found, mappings)
    out = {}
    for study, patient in patient_of.items():
        out.setdefault(patient, set()).add(study)
    return sorted(map(sorted, out.values()))


def test_brats_2020_names_are_joined_over_the_years_and_the_grade_joins_nobody(tmp_path):
    found = studies("Brats18_XX_AA_1", "BraTS20_Training_901", "BraTS20_Training_902", "BraTS20_Training_903")
    mapping = read_mapping(table(tmp_path, BRATS2020), found)
    assert mapping.others == ["Grade"]
    assert mapping.sha256 == hashlib.sha256(BRATS2020.encode()).hexdigest()
    assert groups(found, mapping) == [
        ["BraTS20_Training_901", "Brats18_XX_AA_1"],
        ["BraTS20_Training_902"],
        ["BraTS20_Training_903"],
    ]
    assert name_patients(found, [mapping])["Brats18_XX_AA_1"] == "BraTS20_Training_901"


def test_sites_and_cohorts_of_the_2023_table_join_nobody(tmp_path):
    found = studies("BraTS-GLI-90001-000", "BraTS20_Training_901", "BraTS-GLI-90002-000", "BraTS-GLI-90003-000")
    mapping = read_mapping(table(tmp_path, GLI_2017_TO_2023), found)
    assert mapping.others == [
        "Cohort Name (if publicly available)",
        "Site No (represents the originating institution)",
    ]
    assert mapping.columns[-1] == "Local ID"
    assert groups(found, mapping) == [
        ["BraTS-GLI-90001-000", "BraTS20_Training_901"],
        ["BraTS-GLI-90002-000"],
        ["BraTS-GLI-90003-000"],
    ]


def test_the_tcia_table_of_2021_joins_by_patient_not_by_site_date_or_placeholder(tmp_path):
    found = studies(*(f"BraTS2021_9001{n}" for n in range(5)))
    mapping = read_mapping(table(tmp_path, TCIA_2021), found)
    assert mapping.columns == ["PatientID on TCIA Radiology Portal", "BraTS2021 ID"]
    assert groups(found, mapping)[-1] == ["BraTS2021_90013", "BraTS2021_90014"]
    assert len(groups(found, mapping)) == 4


def test_several_tables_join_what_neither_does_alone(tmp_path):
    found = studies("BraTS20_Training_903", "BraTS2021_90010")
    first = read_mapping(table(tmp_path, BRATS2020, "a.csv"), found)
    second = read_mapping(table(tmp_path, TCIA_2021, "b.csv"), found)
    assert len(groups(found, first)) == len(groups(found, second)) == 2
    assert groups(found, first, second) == groups(found, second, first) == [["BraTS2021_90010", "BraTS20_Training_903"]]


def test_other_time_points_of_a_named_study_are_the_same_patients(tmp_path):
    found = studies("BraTS-GLI-90001-001", "BraTS-GLI-90001-003", "BraTS2021_90001", "BraTS2021_90002")
    mapping = read_mapping(table(tmp_path, GLI_2017_TO_2023), found)
    assert groups(found, mapping)[0] == ["BraTS-GLI-90001-001", "BraTS-GLI-90001-003", "BraTS2021_90001"]
    assert named_in(mapping, found) == {s.id for s in found}


def test_names_differ_by_case_in_nothing(tmp_path):
    found = studies("BRATS18_xx_aa_1", "brats20_training_901")
    assert len(groups(found, read_mapping(table(tmp_path, BRATS2020), found))) == 1


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_spreadsheets_write_their_own_separators_and_a_mark_first(tmp_path, separator):
    text = f"\ufeffours{separator}theirs\r\nAA-1{separator}BB-1\r\n\r\nAA-2\r\n"
    found = studies("AA-1", "BB-1", "AA-2")
    mapping = read_mapping(table(tmp_path, text), found)
    assert mapping.columns == ["ours", "theirs"]
    assert groups(found, mapping) == [["AA-1", "BB-1"], ["AA-2"]]


def test_a_column_without_a_telling_header_has_names_where_it_has_ids_of_studies(tmp_path):
    text = "ours,theirs,remark\nAA-1,BB-1,see CC-9\nAA-2,BB-2,see CC-9\n"
    mapping = read_mapping(table(tmp_path, text), studies("AA-1", "x"))
    assert (mapping.columns, mapping.others) == (["ours"], ["theirs", "remark"])


def test_ids_of_studies_do_not_make_a_name_of_an_age(tmp_path):
    found = studies("57", "58", "AA-1", "AA-2")
    mapping = read_mapping(table(tmp_path, "case_id,survival,mgmt\nAA-1,57,58\nAA-2,57,58\n"), found)
    assert mapping.columns == ["case_id"]


@pytest.mark.parametrize(
    ("header", "is_name"),
    [("ID", True), ("BraTS21ID", True), ("case_id", True), ("pat_Id", True), ("patient", True), ("TCIA barcode", True),
     ("IDH1", False), ("Age", False), ("PatientAge", False), ("patient_sex", False), ("Survival_days", False), ("image", False),
     ("siteID", False), ("cohort of BraTS", False), ("width", False)],
)  # fmt: skip
def test_headers_say_what_has_names(tmp_path, header, is_name):
    mapping = read_mapping(table(tmp_path, f"BraTS2021,{header}\nX1,Y1\n"), [])
    assert (header in mapping.columns) == is_name


def test_numbers_join_within_their_column_only(tmp_path):
    found = studies("AA-1", "AA-2", "BB-1", "CC-1")
    first = read_mapping(table(tmp_path, "study,patient,case\nAA-1,7,1\nAA-2,7,2\nBB-1,8,7\n", "a.csv"), found)
    second = read_mapping(table(tmp_path, "study,patient\nCC-1,7\n", "b.csv"), found)
    assert groups(found, first, second) == [["AA-1", "AA-2"], ["BB-1"], ["CC-1"]]


def test_a_number_that_is_a_studys_id_is_that_study(tmp_path):
    found = studies("00169", "BraTS2021_00169", "AA-1")
    mapping = read_mapping(table(tmp_path, "BraTS21ID,other_id\n00169,BraTS2021_00169\n"), found)
    assert groups(found, mapping) == [["00169", "BraTS2021_00169"], ["AA-1"]]


@pytest.mark.parametrize(("rows", "joined"), [(MOST_VISITS, True), (MOST_VISITS + 1, False)])
def test_a_name_in_too_many_rows_is_nobodys(tmp_path, rows, joined):
    text = "study_id,patient_id\n" + "".join(f"AA-{n},Everyone1\n" for n in range(rows))
    found = studies("AA-0", "AA-1")
    mapping = read_mapping(table(tmp_path, text), found)
    assert mapping.crowded == ({} if joined else {"everyone1": rows})
    assert len(groups(found, mapping)) == (1 if joined else 2)


def test_a_name_too_many_in_one_column_still_counts_in_another(tmp_path):
    text = "study_id,group_of,patient_id\n" + "".join(f"AA-{n},,1\n" for n in range(MOST_VISITS + 1))
    found = studies("AA-0", "AA-1")
    text = text.replace("group_of", "case_id").replace("AA-0,,", "AA-0,1,").replace("AA-1,,", "AA-1,1,")
    assert len(groups(found, read_mapping(table(tmp_path, text), found))) == 1


def test_without_a_table_patients_are_told_by_the_studies_names():
    found = studies("BraTS-GLI-90001-000", "BraTS-GLI-90001-001", "sub-1_ses-1", "sub-1_ses-2", "a", "A")
    assert name_patients(found, []) == {s.id: s.patient for s in found}


def test_a_row_of_one_year_names_the_patient_in_the_years_that_name_alike(tmp_path):
    found = studies("Brats17_XX_AA_1", "BraTS19_XX_AA_1", "BraTS20_Training_901")
    mapping = read_mapping(table(tmp_path, "BraTS_2018,BraTS_2020\nBrats18_XX_AA_1,BraTS20_Training_901\n"), found)
    assert groups(found, mapping) == [["BraTS19_XX_AA_1", "BraTS20_Training_901", "Brats17_XX_AA_1"]]
    assert named_in(mapping, found) == {s.id for s in found}


@pytest.mark.parametrize(
    ("ids", "years"),
    [
        (("Brats17_TCIA_628_1", "Brats18_TCIA10_628_1", "BraTS19_TCIA10_629_1"), []),
        (("Brats18_TCIA10_628_1", "BraTS20_Training_001"), ["brats2018", "brats2020"]),
        (("BraTS2021_00001", "BraTS-GLI-00001-000"), ["brats2021", "brats2023"]),
        (("BraTS20_Training_001", "BraTS20_Training_002", "s1"), []),
        (("Brats18_TCIA10_628_1", "BraTS2021_PhantomV2_00000"), []),
    ],
)
def test_years_whose_names_do_not_tell_a_patient_of_both(ids, years):
    assert unjoined_years(named_studies(ids)) == years


def test_years_of_two_groups_are_told_where_each_has_some():
    old, new = named_studies(["Brats18_TCIA10_628_1"]), named_studies(["BraTS20_Training_001", "BraTS2021_00001"])
    others = named_studies(["BraTS2021_PhantomV2_00000", "s1"])
    assert unjoined_years(old, new) == ["brats2018", "brats2020", "brats2021"]
    assert unjoined_years(new, others) == unjoined_years(others, new) == []


def test_a_table_of_other_data_names_none_and_joins_nothing(tmp_path):
    found = studies("AA-1", "AA-2")
    mapping = read_mapping(table(tmp_path, BRATS2020), found)
    assert named_in(mapping, found) == set()
    assert name_patients(found, [mapping]) == {"AA-1": "AA-1", "AA-2": "AA-2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 rows"),
        (b"BraTS2021_ID\n\n", "has 1 rows"),
        (b"Grade,Age\nHGG,57\n", "no column of patients' names: its columns are Grade, Age"),
        (b"BraTS2021_ID,Grade\nX1,HGG,X2\n", "a row of 3 values under 2 headers, beginning with 'X1'"),
        (b"PK\x03\x04\xff\xfe\x00", "no CSV file"),
        (b'BraTS2021_ID\n"X1\nX2\n', "no CSV file"),
    ],
)
def test_what_is_no_table_of_names_is_refused(tmp_path, content, message):
    path = tmp_path / "mapping.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_mapping(path, studies("AA-1"))


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_mapping(tmp_path / "nowhere.csv", [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 25), max_size=4), max_size=12), st.randoms())
def test_joining_is_transitive_and_knows_no_order(rows, random):
    ids = [f"s{n}" for n in range(20)]
    expected = [{i} for i in ids] + [{f"s{n}"} for n in range(20, 26)]
    for row in rows:  # the plain way: merge every set that a row touches
        names = {f"s{n}" for n in row}
        touched = [group for group in expected if group & names]
        if touched:
            expected = [group for group in expected if group not in touched] + [set.union(*touched)]
    expected = sorted(sorted(group & set(ids)) for group in expected if group & set(ids))
    named = [[f"s{n}" for n in random.sample(row, len(row))] for row in random.sample(rows, len(rows))]
    half = len(named) // 2
    mappings = [NameMapping("t", "", [], [], {}, part) for part in (named[:half], named[half:])]
    assert groups(studies(*random.sample(ids, len(ids))), *mappings) == expected
    assert name_patients(studies(*ids), mappings) == name_patients(studies(*ids[::-1]), mappings[::-1])
