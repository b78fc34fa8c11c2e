"""Every kind of WGSL kernel compiles with Chromium's compiler, Tint, not only with wgpu's naga."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from tests.codegen.wgsl.suite import kernels

pytestmark = pytest.mark.browser

COMPILE = """async (kernels) => {
  const adapter = await navigator.gpu.requestAdapter();
  const features = ['shader-f16', 'subgroups'].filter((f) => adapter.features.has(f));
  const device = await adapter.requestDevice({ requiredFeatures: features });
  const failed = [];
  for (const [name, code] of kernels) {
    device.pushErrorScope('validation');
    const module = device.createShaderModule({ code });
    const { messages } = await module.getCompilationInfo();
    for (const m of messages) failed.push(`${name}, line ${m.lineNum}: ${m.message}`);
    if (!messages.length) {
      device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main' } });
    }
    const error = await device.popErrorScope();
    if (error && !messages.length) failed.push(`${name}: ${error.message}`);
  }
  device.destroy();
  return failed;
}"""


def test_tint_compiles_every_kind_of_kernel(page: Page) -> None:
    header = {"subgroups": "enable subgroups;\n"}
    suite = [[k.name, "".join(header[f] for f in k.features) + k.code] for k in kernels()]
    assert len(suite) > 150
    assert page.evaluate(COMPILE, suite) == []
