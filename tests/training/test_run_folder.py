import pytest

from tests.planted import planted  # noqa: F401
from tfbind_store.errors import ConfigError, StoreBusy, TrainingError
from tfbind_store.query.selection import Selection
from tfbind_store.training.config import TrainConfig
from tfbind_store.training.run_folder import RunFolder


@pytest.fixture
def folder(planted, tmp_path):  # noqa: F811
    return RunFolder.of(tmp_path / "run", Selection.open(planted.store, planted.selection), TrainConfig(steps=3))


def of_other_steps(folder, planted):  # noqa: F811
    return RunFolder.of(folder.path, Selection.open(planted.store, planted.selection), TrainConfig(steps=4))


def test_nothing_is_written_before_it_begins(folder):
    folder.require_free(overwrite=False)
    assert not folder.path.exists()
    assert not folder.has_ended
    assert not folder.is_of_this_config


def test_a_head_without_a_state_is_the_end(folder):
    with folder.begun(overwrite=False):
        folder.state.touch()
        folder.head.touch()
    assert not folder.has_ended
    folder.require_free(overwrite=False)
    folder.state.unlink()
    assert folder.has_ended
    with pytest.raises(TrainingError, match="is finished"):
        folder.require_free(overwrite=False)


def test_another_config_or_other_rows_are_refused(folder, planted):  # noqa: F811
    with folder.begun(overwrite=False):
        pass
    other = of_other_steps(folder, planted)
    assert folder.is_of_this_config
    assert not other.is_of_this_config
    with pytest.raises(ConfigError, match="another config"):
        other.require_free(overwrite=False)
    same_steps_of_other_rows = RunFolder(folder.path, folder.text.replace("rows ", "rows 0"))
    with pytest.raises(ConfigError, match="another config or selection"):
        same_steps_of_other_rows.require_free(overwrite=False)
    other.require_free(overwrite=True)


def test_going_on_keeps_what_is_there_and_beginning_anew_does_not(folder, planted):  # noqa: F811
    with folder.begun(overwrite=False):
        folder.state.write_bytes(b"state")
        (folder.path / "tensorboard").mkdir()
    with folder.begun(overwrite=False):
        assert folder.state.read_bytes() == b"state"
    with of_other_steps(folder, planted).begun(overwrite=True):
        assert [path.name for path in folder.path.iterdir()] == ["config.toml"]
    assert of_other_steps(folder, planted).is_of_this_config


def test_nobody_else_trains_it_meanwhile(folder, planted):  # noqa: F811
    with folder.begun(overwrite=False):
        folder.state.write_bytes(b"state")
        with (
            pytest.raises(StoreBusy, match="training run 'run'"),
            of_other_steps(folder, planted).begun(overwrite=True),
        ):
            pass
        assert folder.state.exists()
    with folder.begun(overwrite=False):
        pass
