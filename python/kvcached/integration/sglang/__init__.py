# SPDX-License-Identifier: Apache-2.0
"""SGLang: `plugin`, which SGLang loads by itself, and `interfaces` for integrations of one's own."""
