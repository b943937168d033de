# Ray's own image plus what the jobs import, in the versions that the tests ran with.
FROM rayproject/ray:2.60.0-py311-gpu

# The dependencies alone, so that a change of code does not install them again.
WORKDIR /home/ray/app
COPY --chown=ray:users pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join(p['dependencies'] + sum((p['optional-dependencies'][e] for e in ('timm', 'onnx', 'serve')), [])))" > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt -c constraints.txt

# The code, for Kubernetes; `ray job submit --working-dir .` brings its own and that one is used.
COPY --chown=ray:users fer_ray ./fer_ray
COPY --chown=ray:users jobs ./jobs
COPY --chown=ray:users cluster /opt/fer_ray/cluster

# Fails here, and not on a node that costs money, if the launcher or a job would lack something.
ENV PYTHONPATH=/opt/fer_ray
RUN command -v ssh && command -v rsync && mkdir -p /home/ray/.ray \
    && python -c "import boto3, captum, cleanlab, cv2, optuna, pyarrow, safetensors, timm, torch, torchvision, \
onnx, onnxruntime, onnxscript, fastapi, python_multipart; \
import cluster.spot_first, ray; assert ray.__version__ == '2.60.0', ray.__version__"

# Everything in the container speaks with a token, or not at all.
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
USER 1000
