"""kohya's options that need no counterpart here, and those that have none, with what to do instead."""

from flowgrain.convert.kohya_command import Architecture

_ENCODERS = "part of the model folder or hub id"
_ATTENTION = "torch's scaled dot-product attention is always used"
_LOADER = "pictures are read ahead by themselves"
_FLUX_IGNORES = "kohya's FLUX trainer does not read it either"
_UPLOAD = "nothing is uploaded: copy the run folder's adapter by hand"
_RESUME = "every checkpoint can be resumed: run the same command with --resume"
_METADATA = "the saved adapter's header says what it is by itself"
_SHOWN = "TensorBoard files and metrics.jsonl are always written, in the run folder"
_CONSOLE = "a matter of kohya's console"
_ACCELERATE = "start flowgrain itself with accelerate launch: it reads the number of processes there"

SHARED_NOT_NEEDED: dict[str, str] = {
    "tokenizer_cache_dir": _ENCODERS,
    **dict.fromkeys(("sdpa", "xformers", "mem_eff_attn"), _ATTENTION),
    **dict.fromkeys(("max_data_loader_n_workers", "persistent_data_loader_workers"), _LOADER),
    **dict.fromkeys(
        ("vae_batch_size", "text_encoder_batch_size"), "pictures and captions are encoded one by one: same bits"
    ),
    **dict.fromkeys(("lowram", "highvram", "disable_mmap_load_safetensors"), "weights are loaded memory-mapped"),
    **dict.fromkeys(("save_state", "save_state_on_train_end", "resume"), _RESUME),
    **dict.fromkeys(("initial_epoch", "initial_step", "skip_until_initial_step"), _RESUME),
    **dict.fromkeys(("save_last_n_steps_state", "save_last_n_epochs_state"), _RESUME),
    **dict.fromkeys(("no_metadata", "training_comment", "metadata_title", "metadata_author"), _METADATA),
    **dict.fromkeys(("metadata_description", "metadata_license", "metadata_tags"), _METADATA),
    **dict.fromkeys(("logging_dir", "log_prefix", "log_tracker_name", "log_tracker_config", "log_config"), _SHOWN),
    **dict.fromkeys(("wandb_api_key",), "wandb reads its own login"),
    **dict.fromkeys(("console_log_level", "console_log_file", "console_log_simple", "output_config"), _CONSOLE),
    **dict.fromkeys(("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph"), _ACCELERATE),
    **dict.fromkeys(
        ("dynamo_backend", "skip_cache_check", "cache_info", "debug_dataset"), "a matter of speed or display"
    ),
    "huber_schedule": "read with a Huber loss alone",
    "huber_c": "read with a Huber loss alone",
    "huber_scale": "read with a Huber loss alone",
    "save_precision": "the adapter is saved in float32, as it is trained",
    "dim_from_weights": "adapter.init_from checks that the ranks agree; set adapter.rank to the file's",
    "validation_seed": "the held-out pictures are chosen by seed",
    "max_validation_steps": "every held-out picture is measured; validation.max_roots measures fewer",
    "dataset_repeats": "read for metadata data sets alone",
}

_CAPTIONS = "captions are used as they are: write the variants into the caption files, or train without it"
_CROPS = "cut crops once with 'flowgrain decompose' and train on them, or do without"
_UNDER_MEMORY = "use memory.quantize, memory.gradient_checkpointing and memory.offload_encoders to save memory"

SHARED_UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(("full_fp16", "full_bf16"), "the adapter's parameters stay float32: it is small"),
    **dict.fromkeys(
        ("blocks_to_swap", "split_mode", "cpu_offload_checkpointing", "fused_backward_pass"), _UNDER_MEMORY
    ),
    **dict.fromkeys(
        ("fp8_base_unet", "fp8_scaled"), "memory.quantize fp8 with memory.gradient_checkpointing is the nearest"
    ),
    **dict.fromkeys(("keep_tokens_separator", "secondary_separator", "enable_wildcard"), _CAPTIONS),
    **dict.fromkeys(("token_warmup_step", "token_warmup_min", "caption_dropout_every_n_epochs"), _CAPTIONS),
    **dict.fromkeys(("random_crop", "face_crop_aug_range"), _CROPS),
    **dict.fromkeys(
        ("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token"), _UPLOAD
    ),
    **dict.fromkeys(("huggingface_repo_visibility", "save_state_to_huggingface", "async_upload"), _UPLOAD),
    **dict.fromkeys(("ip_noise_gamma", "ip_noise_gamma_random_strength"), "inputs are not perturbed: do without"),
    **dict.fromkeys(
        ("lr_decay_steps", "lr_scheduler_type", "lr_scheduler_args", "lr_scheduler_timescale"), "choose schedule.kind"
    ),
    **dict.fromkeys(
        ("save_last_n_steps", "save_last_n_epochs"), "checkpoints of budget.checkpoints stay: delete some by hand"
    ),
    "color_aug": "no colour augmentation: it changes what is learnt of colour",
    "scale_weight_norms": "weights are not rescaled: lower optimizer.lr or raise optimizer.weight_decay",
    "skip_image_resolution": "no picture is left out by its size: move the small ones away",
    "interpolation_type": "pictures are resized with Lanczos",
    "sample_at_first": "previews start with training: 'flowgrain sample' draws with the bare model",
    "resume_from_huggingface": "download the run folder, then use --resume",
    "in_json": "write the captions into .txt files beside the pictures",
    "metadata_file": "write the captions into .txt files beside the pictures",
    "dataset_class": "own data-set classes are not read",
    "train_inpainting": "inpainting models are not trained",
    "controlnet_model_name_or_path": "adapters are not trained beside a ControlNet",
    "network_train_text_encoder_only": "the backbone trains, always",
    "save_n_epoch_ratio": "set budget.checkpoints",
    "deepspeed": "start with accelerate launch and its DeepSpeed configuration",
    "network_multiplier": "the adapter is trained at strength 1",
}

_UNET_NOT_NEEDED = {
    "no_half_vae": "bfloat16 does not overflow",
}
_UNET_UNSUPPORTED = {
    **dict.fromkeys(
        ("scale_v_pred_loss_like_noise_pred", "v_pred_like_loss"), "choose a weighting by SNR: weighting.kind min_snr"
    ),
    **dict.fromkeys(("multires_noise_iterations", "multires_noise_discount"), "offset noise is there: noise.offset"),
    **dict.fromkeys(
        ("min_timestep", "max_timestep"), "all steps are trained; time.kind logit_normal favours some of them"
    ),
    "noise_offset_random_strength": "the strength is noise.offset for every picture",
    "weighted_captions": "parentheses are read as text, not as weights",
    "vae": "put it into the model's folder (diffusers layout)",
    "sample_sampler": "previews are drawn with the model's own scheduler",
}

NOT_NEEDED: dict[Architecture, dict[str, str]] = {
    "flux": {
        **SHARED_NOT_NEEDED,
        **dict.fromkeys(("clip_l", "t5xxl", "ae", "vae"), _ENCODERS),
        **dict.fromkeys(
            ("min_snr_gamma", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss", "debiased_estimation_loss"),
            _FLUX_IGNORES,
        ),
        **dict.fromkeys(
            ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale", "zero_terminal_snr", "clip_skip"),
            _FLUX_IGNORES,
        ),
        **dict.fromkeys(("multires_noise_iterations", "multires_noise_discount", "max_token_length"), _FLUX_IGNORES),
        **dict.fromkeys(("v2", "v_parameterization"), "not read for FLUX"),
        **dict.fromkeys(("show_timesteps", "show_timesteps_offset"), "docs/from-kohya.md has the numbers of the law"),
        "sample_sampler": "previews use the model's own flow-matching scheduler, as kohya's FLUX trainer does",
        "mode_scale": "read with weighting_scheme mode alone",
    },
    "sdxl": {**SHARED_NOT_NEEDED, **_UNET_NOT_NEEDED},
    "sd": {**SHARED_NOT_NEEDED, **_UNET_NOT_NEEDED},
}

UNSUPPORTED: dict[Architecture, dict[str, str]] = {
    "flux": {
        **SHARED_UNSUPPORTED,
        **dict.fromkeys(
            ("min_timestep", "max_timestep"),
            "the law of t has no limits: shift it with time.mean, narrow it with time.std",
        ),
        "apply_t5_attn_mask": "T5 tokens are not masked, as in FLUX's own pipeline",
    },
    "sdxl": {**SHARED_UNSUPPORTED, **_UNET_UNSUPPORTED},
    "sd": {**SHARED_UNSUPPORTED, **_UNET_UNSUPPORTED},
}

LAUNCH_NOT_NEEDED = "an option of accelerate launch: " + _ACCELERATE
