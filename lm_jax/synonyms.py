"""Names from other libraries, with the corresponding settings and flags of lm_jax.

An entry of a table reads `meaning: names`. The meaning is a dotted path of a setting, a
`path=value`, or several of these; or a flag of a command. Names are in small letters, with _ for -.
A name is looked up without its group: `--lr`, `--train.lr` and `--model.lr` are the same name. A
test checks that every setting in the tables exists; this module does not.

The names come from PyTorch's word_language_model and nn modules, Zaremba's code, the AWD-LSTM's
code, Keras, Flax, Optax, nanoGPT and the Hugging Face trainer.
"""

import difflib
from collections.abc import Iterable, Mapping

Meant = tuple[tuple[str, str | None], ...]
"""Pairs of a path and a value; None stands for the typed value."""

SETTINGS = {
    "seed": "random_seed manual_seed rng_seed rng prng_seed",
    "data.source.train": "data corpus text file path input data_path data_dir train_file "
    "train_data",
    "data.source.name": "dataset dataset_name tfds",
    "data.source.validation": "valid val dev valid_data val_data validation_data val_file dev_data "
    "validation_file valid_file",
    "data.source.test": "test_data test_file eval_data",
    "data.tokenizer": "level token_level tokenization",
    "data.tokenizer.file": "tokenizer_file tokenizer_path tokenizer_json",
    "data.tokenizer.size": "vocabulary_size vocab vocab_size vocabulary num_words max_vocab "
    "max_tokens n_vocab ntoken ntokens input_dim num_embeddings",
    "data.tokenizer.word_list": "limit_vocab_file vocab_file vocabulary_file",
    "data.tokenizer.min_count": "min_freq min_frequency",
    "data.batch_size": "bs bsz batch batchsize minibatch minibatch_size train_batch_size "
    "per_device_train_batch_size",
    "data.length": "bptt seq_len seqlen seq_length sequence_length block_size context_length n_ctx "
    "maxlen max_len max_length max_seq_len max_seq_length timesteps time_steps chunk chunk_size "
    "chunk_length unroll unroll_length",
    "data.source": "task dataset_type",
    "data.batching=sentences": "sentences by_sentence line_by_line",
    "data.batching=streams": "stateful streams",
    "model.hidden_size": "hidden nhid hidden_dim hidden_units hidden_features n_hidden num_hidden "
    "units num_units n_units rnn_size lstm_size state_size cell_size features filters channels "
    "d_model dim",
    "model.embedding_size": "emsize emb embed embedding embeddings embedding_dim emb_dim emb_size "
    "embed_dim embed_size n_embd nemb d_embed output_dim input_size",
    "model.layers": "nlayers n_layer n_layers num_layers layer depth nb_layers num_rnn_layers",
    "model.cell": "rnn rnn_type rnn_cell cell_type core",
    "model.cell.activation": "nonlinearity nonlin act activation_fn activation_function",
    "model.skip_connections": "direct",
    "model.sentence_boundaries": "bounded",
    "train.probe.sequences": "lanes",
    "model.order": "n ngram n_gram ngram_order window_size context_size",
    "model.prune": "cutoff count_cutoffs min_ngram_count",
    "model.entropy_threshold": "entropy_pruning entropy_prune prune_threshold pruning_threshold",
    "model.width": "kernel_size kernel filter_size",
    "model.dilation": "dilation_rate",
    "model.pooling": "pool pool_size max_pool",
    "model.readout": "softmax decoder",
    "model.readout.tied": "tie tie_weights tied_weights weight_tying tie_embeddings "
    "tied_embeddings tie_word_embeddings share_embeddings",
    "model.readout.bias": "use_bias",
    "model.readout.samples": "num_sampled nsampled",
    "model.dropout.outputs": "dropout drop dropout_rate drop_rate dropout_prob p_drop",
    "model.dropout.inputs": "dropouti input_dropout embedding_dropout emb_dropout embd_pdrop",
    "model.dropout.between": "dropouth hidden_dropout layer_dropout",
    "model.dropout.embedding": "words dropoute word_dropout",
    "model.dropout.recurrent": "recurrent_dropout wdrop weight_drop weight_dropout",
    "model.dropout.locked": "locked_dropout variational variational_dropout",
    "model.activation_penalty": "alpha ar activity_regularizer activation_regularization",
    "model.change_penalty": "beta tar temporal_activation_regularization",
    "model.uniform": "init_scale initrange init_range",
    "model.cell.init": "initializer initialization recurrent_initializer recurrent_init",
    "model.cell.forget_bias": "unit_forget_bias forget_gate_bias",
    "model.vectors": "glove word2vec pretrained pretrained_embeddings embeddings_file",
    "model.init_from": "from start_from finetune fine_tune warm_start checkpoint load_from",
    "model.freeze": "frozen fix freeze_vectors freeze_embeddings",
    "model.precision": "dtype param_dtype mixed_precision",
    "model.precision=bfloat16": "bf16 fp16 half amp",
    "train.learning_rate": "lr eta step_size base_lr init_lr initial_lr max_lr peak_lr rate",
    "train.optimizer": "opt optim optimiser solver",
    "train.optimizer.beta1": "b1 beta_1 adam_beta1",
    "train.optimizer.beta2": "b2 beta_2 adam_beta2",
    "train.optimizer.eps": "epsilon adam_epsilon",
    "train.optimizer.decay": "rho",
    "train.optimizer.patience": "nonmono",
    "train.accumulate": "update_freq grad_accum gradient_accumulation gradient_accumulation_steps "
    "accumulation_steps accumulate_grad_batches",
    "train.ema_decay": "ema moving_average polyak",
    "train.groups": "param_groups parameter_groups",
    "train.weight_decay": "wdecay wd l2 l2_reg",
    "train.schedule=cosine": "decay_lr",
    "train.schedule": "scheduler lr_schedule lr_scheduler lr_scheduler_type",
    "train.schedule.warmup_steps": "warmup warmup_iters num_warmup_steps warmup_updates",
    "train.schedule.steps": "lr_decay_iters decay_steps",
    "train.schedule.factor": "lr_decay gamma",
    "train.clip_norm": "clip clipping clipnorm global_clipnorm clip_grad clip_grad_norm "
    "gradient_clip gradient_clipping gradient_clip_val grad_clip gradclip max_grad_norm max_norm",
    "train.clip_value": "clipvalue clip_grad_value",
    "train.steps": "max_iters iters iterations num_iterations n_iter num_steps n_steps max_steps "
    "total_steps train_steps num_train_steps updates num_updates",
    "train.epochs": "epoch n_epochs num_epochs nb_epoch nepochs max_epochs num_train_epochs passes",
    "train.patience": "early_stopping early_stop early_stopping_patience",
    "train.on_divergence": "nan_policy terminate_on_nan on_nan skip_nan stop_on_nan",
    "train.keep_best": "save_best save_best_only restore_best_weights load_best_model_at_end",
    "train.log_every": "log_interval log_freq log_steps logging_steps print_every",
    "train.validate_every": "eval_interval eval_every eval_steps eval_freq val_interval val_every "
    "valid_every valid_interval validation_interval validation_freq",
    "train.checkpoint_every": "save_every save_interval save_steps save_freq checkpoint_interval "
    "ckpt_every",
    "train.gradient": "backprop backward gradient_estimator",
    "train.gradient.k2": "tbptt truncate truncation truncated_bptt bptt_steps",
    "train.gradient.recompute=sqrt": "remat gradient_checkpointing grad_checkpoint",
    "train.feeding=own": "scheduled_sampling free_running",
    "train.feeding=teacher": "teacher_forcing",
    "train.probe=live": "watch watch_gradients log_gradients",
}

# An entry without names lets its own value be recognised after the wrong flag.
VALUES = {
    "model.cell=elman": "rnn simple simple_rnn simplernn simplecell rnn_tanh vanilla vanilla_rnn "
    "srn",
    "model.cell=elman model.cell.activation=relu": "rnn_relu",
    "model.cell=lstm": "lstmcell optimizedlstmcell",
    "model.cell=gru": "grucell",
    "model.cell=mogrifier": "mogrifier_lstm mogrify",
    "model.cell=mingru": "",
    "model.cell=minlstm": "",
    "model.cell=slstm": "",
    "model.cell=mlstm": "xlstm",
    "model.cell=sru": "",
    "model.cell=rglru": "rg_lru griffin hawk",
    "model.cell=lru": "diagonal ssm s4 s5",
    "model=rnn": "recurrent rnnlm",
    "model=window": "mlp ffnn feedforward nnlm bengio fixed_window",
    "model=convolution": "cnn conv conv1d tcn",
    "model=ngram": "n_gram ngrams kneser_ney",
    "model=ngram model.order=1": "unigram",
    "model=ngram model.order=2": "bigram",
    "model=ngram model.order=3": "trigram",
    "model.smoothing=backoff": "arpa katz",
    "model.smoothing=kneser-ney": "kn modified_kneser_ney",
    "model.smoothing=interpolated": "jm jelinek_mercer",
    "model.smoothing=add-k": "laplace lidstone add_one",
    "model.smoothing=none": "mle off",
    "model.embedding=adaptive": "adaptive_input adaptive_inputs adaptive_input_representations",
    "model.embedding=characters": "char_cnn charcnn character_cnn",
    "model.embedding=table": "lookup",
    "model.readout=adaptive": "adaptive_softmax adaptivelogsoftmaxwithloss",
    "model.readout=sampled": "sampled_softmax",
    "model.readout=nce": "noise_contrastive nce_loss",
    "model.readout=softmax": "full log_softmax",
    "model.precision=tf32": "tensorfloat32 tensor_float_32 high",
    "model.precision=bfloat16": "bf16 fp16 float16 half mixed_bfloat16 16 bf16_mixed 16_mixed",
    "model.precision=float32": "fp32 float single 32 float64 fp64 double 64",
    "model.cell.init=identity": "eye irnn",
    "data.tokenizer=auto": "default usual",
    "data.tokenizer=char": "chars character characters",
    "data.tokenizer=byte": "bytes utf8",
    "data.tokenizer=word": "words",
    "data.tokenizer=bpe": "subword subwords sentencepiece byte_pair gpt2",
    "data.source=copy": "task",
    "data.source=tfds": "tensorflow_datasets",
    "data.source=datasets": "huggingface hugging_face hf parquet arrow",
    "data.source=file": "files path text",
    "data.batching=streams": "stateful stream contiguous",
    "data.batching=sentences": "sentence lines line",
    "train.optimizer=momentum": "sgd_momentum nesterov",
    "train.optimizer=rmsprop": "rms rms_prop",
    "train.optimizer=adan": "",
    "train.optimizer=adafactor": "",
    "train.optimizer=lion": "",
    "train.optimizer=muon": "",
    "train.optimizer=asgd": "nt_asgd averaged_sgd",
    "train.schedule=constant": "none fixed",
    "train.schedule=cosine": "cosine_decay cosineannealinglr cosine_annealing warmup",
    "train.schedule=epochs": "step steplr exponential exponentiallr exponential_decay",
    "train.schedule=plateau": "reducelronplateau reduce_on_plateau reduce_lr_on_plateau",
    "train.schedule=range": "lr_find lr_finder lr_range_test range_test",
    "train.gradient=explicit": "bptt manual",
    "train.gradient=full": "autodiff autograd backprop",
    "train.gradient=truncated": "tbptt truncated_bptt",
    "train.feeding=own": "scheduled_sampling free_running",
    "train.feeding=teacher": "teacher_forcing",
    "train.probe=live": "on true",
    "train.probe=off": "none false",
}

ELSEWHERE = (
    "model.cell",
    "model",
    "data.tokenizer",
    "train.optimizer",
    "train.schedule",
)
"""Settings with values recognised after any flag."""

FLAG_VALUES = {
    "by=token": "word tokens char",
    "by=sentence": "line lines sentences",
    "by=none": "sum total text",
    "dynamic=rms": "rmsprop",
    "executor=here": "local none serial",
    "executor=processes": "multiprocessing process parallel",
    "executor=slurm": "submitit",
    "suggest=optuna": "tpe bayes",
}
"""Values of the commands' own flags, in the form of `VALUES`."""

_OUT = (
    "out out_dir output output_dir outdir save save_dir save_path dir log_dir logdir workdir "
    "work_dir model_dir checkpoint_dir"
)

_SAID = {"quiet": "silent q", "json": "jsonl json_lines"}

FLAGS = {
    "train": {
        **_SAID,
        "track": "report_to logger loggers tracker trackers",
        "run_dir": _OUT,
        "devices": "gpus n_gpu num_gpus n_devices num_devices",
        "distributed": "multihost multi_host multiprocess nnodes ddp",
    },
    "sweep": {
        **_SAID,
        "run_dir": _OUT,
        "dry_run": "dry plan preview",
        "workers": "jobs n_jobs njobs num_workers processes parallel",
        "cores": "cpus n_cores num_cpus",
        "executor": "backend launcher cluster",
        "retries": "retry max_failures",
        "suggest=optuna": "search sampler tpe",
        "halving_first": "halving asha hyperband pruner min_resource",
        "halving_factor": "reduction_factor",
    },
    "score": {
        "by": "level per",
        "dynamic": "dynamic_evaluation",
        "dynamic_rate": "lr learning_rate",
        "dynamic_length": "bptt",
        "dynamic_decay": "decay",
        "cache": "window pointer cache_size",
        "cache_weight": "lambdasm",
        "cache_flatness": "theta",
        "mix": "interpolate ensemble",
        "mix_weight": "lambda",
        "read=sentences": "sentences independent per_sentence by_line",
    },
    "sample": {
        "prompt": "start prime start_text prime_text text input prefix context",
        "length": "max_tokens max_new_tokens max_length max_len words tokens n_tokens num_tokens",
        "count": "n num_samples n_samples samples num_return_sequences batch_size",
        "temperature": "temp tau",
        "temperature=0": "greedy argmax",
        "top_k": "k",
        "top_p": "p nucleus",
        "beam": "beams beam_size num_beams beam_width",
        "stop": "eos stop_token until",
        "mix": "interpolate ensemble",
        "mix_weight": "lambda",
        "seed": "random_seed",
    },
    "probe": {
        "step": "steps at",
        "text": "file input data",
        "sentence": "prompt line",
        "length": "bptt seq_len chunk",
        "sequences": "lanes batch_size batch",
    },
    "export": {"layout": "format", "modules": "names"},
    "import": {
        "layout": "format",
        "modules": "names",
        "activation": "nonlinearity",
        "vocabulary": "vocab vocab_file vocabulary_file dictionary words tokens",
        "boundary": "eos eos_token end_of_line",
        "unknown": "unk unk_token",
    },
    "verify": {},
    "report": {"out": "output file page"},
    "lecture": {"out": "output o dir run_dir output_dir"},
    "list": {},
    "compare": {},
    "completion": {},
}
"""By command: names for its own flags."""

_DEVICES = {
    "JAX takes the accelerator that it finds, or the CPU where JAX_PLATFORMS=cpu is set": "cuda "
    "gpu gpus gpu_id device tpu cpu no_cuda use_cuda use_gpu accelerator",
}
_TRAINED = {
    **_DEVICES,
    "the same command goes on where it stopped": "resume restore load continue checkpoint ckpt "
    "resume_from init_from load_model",
    "every step of a chunk is predicted": "return_sequences",
    "every update is compiled": "compile jit",
    "the text is read by one process, which puts it on the device": "num_workers n_workers "
    "dataloader_num_workers",
    "a text is cut 90 / 5 / 5, or --data.source.train, --data.source.validation and "
    "--data.source.test name its parts": "validation_split val_split valid_split test_split "
    "train_split split",
    "they are two flags, --train.optimizer.beta1 and --train.optimizer.beta2": "betas adam_betas",
    "--train.schedule.final is the share of the learning rate that a schedule ends with": "min_lr "
    "eta_min end_lr lr_min",
    "--train.feeding own --train.feeding.start S --train.feeding.end E give the share of the "
    "model's own tokens, 1 less the teacher's": "teacher_forcing_ratio sampling_prob",
    "the loss is the cross-entropy of the next token": "loss loss_fn criterion",
    "a language model reads from left to right": "bidirectional num_directions",
}
_LOADED = {
    **_DEVICES,
    "the run comes right after the command": "model model_path checkpoint ckpt checkpoint_path "
    "load run run_dir out_dir init_from",
}

NOTES = {
    **dict.fromkeys(("train", "verify"), _TRAINED),
    "sweep": {
        **_TRAINED,
        "the experiment's sweep() says which trials there are, and how many": "count trials "
        "n_trials num_trials num_samples n_iter_search",
    },
    **dict.fromkeys(("score", "sample", "probe", "export", "report"), _LOADED),
    "import": {},
    "lecture": _DEVICES,
    "list": {},
    "compare": {},
    "completion": {},
}
"""By command: messages for names without a corresponding flag."""

COMMANDS = {
    "train": "fit learn run",
    "sweep": "tune search grid hyperopt",
    "score": "eval evaluate test perplexity",
    "sample": "generate gen predict complete",
    "probe": "analyse analyze inspect",
    "export": "save to_torch serve",
    "import": "load convert from_torch",
    "report": "page html plot plots show figures visualize visualise",
    "lecture": "claims course story",
    "verify": "check gradcheck grad_check",
    "list": "ls experiments",
    "compare": "diff table",
    "completion": "complete_shell autocomplete",
}


def plainly(name: str) -> str:
    """Write a name as in the tables: small letters, _ for - and blanks."""
    return name.lower().replace("-", "_").replace(" ", "_")


def assigned(meant: str) -> Meant:
    """Parse an entry into paths and values: "model.cell=lstm data.length"."""
    parts = (part.partition("=") for part in meant.split())
    return tuple((path, value if equals else None) for path, equals, value in parts)


def name_meant(table: Mapping[str, str], name: str) -> str | None:
    """Return the meaning of a name in a table; None if the table lacks the name."""
    typed = plainly(name)
    return next((meant for meant, names in table.items() if typed in names.split()), None)


def setting_meant(name: str) -> Meant | None:
    """Return the settings meant by a name, ignoring its group; None if unknown."""
    meant = name_meant(SETTINGS, name.rpartition(".")[2])
    return None if meant is None else assigned(meant)


def value_meant(path: str, value: str, known: Iterable[str]) -> Meant | None:
    """Return the likely meaning of a wrong value.

    Args:
      path: dotted path of the setting, or its last parts; or the name of a command's own flag.
      value: the value as typed.
      known: the values of the setting or flag.

    Returns:
      the path with a known value, or another setting with its value; None if nothing is close.
    """
    known, typed = list(known), plainly(value)
    for other in known:
        if plainly(other) == typed:
            return ((path, other),)
    entries = [(assigned(meant), names.split()) for meant, names in (VALUES | FLAG_VALUES).items()]
    for meant, names in entries:
        where, own = meant[0]
        if f".{where}".endswith(f".{path}") and own in known and typed in names:
            return ((path, own), *meant[1:])
    for meant, names in entries:
        where, own = meant[0]
        if where in ELSEWHERE and typed in (plainly(own or ""), *names) and typed != "none":
            return meant
    close = difflib.get_close_matches(typed, known, n=1, cutoff=0.5)
    return ((path, close[0]),) if close else None
