import subprocess
import sys

HEAVY = {"deepface", "cv2", "dlib", "tensorflow", "PIL", "numpy", "requests"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, sealface.recognition, sealface.recognition.weights\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_without_deepface_the_error_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['deepface'] = None\n"
        "from sealface.recognition import Embedder, DeepfaceMissing\n"
        "try: Embedder()\n"
        "except DeepfaceMissing as error: print(error.message)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install" in done.stdout
