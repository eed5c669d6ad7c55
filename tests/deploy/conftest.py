import pytest

from tests.deploy.cluster import Cluster, render


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return render()
