# SPDX-License-Identifier: Apache-2.0
"""vLLM: `interfaces` for integrations of one's own."""
