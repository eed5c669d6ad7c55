// Draws a dashboard with Grafana's own components: its panels in their places, from what Prometheus answered.
// `window.BOARD` is the dashboard's JSON, `window.ANSWERS` the answers by panel id and refId, `window.EVENTS` what all
// graphs mark (draw.py fills them in). Grafana's package has no state timeline: its rows are drawn here.
import {
  type DataFrame, EventBusSrv, type Field, FieldType, createDataFrame, createTheme, dateTime, getDisplayProcessor,
  type TimeRange,
} from '@grafana/data';
import {
  BigValue, BigValueColorMode, BigValueGraphMode, BigValueJustifyMode, BigValueTextMode, GlobalStyles, PanelChrome,
  PanelContextProvider, ThemeContext, TimeSeries,
} from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { useLayoutEffect } from 'react';
import { createRoot } from 'react-dom/client';

declare global {
  interface Window {
    BOARD: any; ANSWERS: Record<number, Record<string, any[]>>; SPAN: [number, number]; STEP: number;
    EVENTS: { time: number; colour: string }[];
  }
}

const theme = createTheme({ colors: { mode: 'dark' } });
const CELL = { width: 60, height: 36, gap: 8 };
const range: TimeRange = {
  from: dateTime(window.SPAN[0] * 1000), to: dateTime(window.SPAN[1] * 1000),
  raw: { from: 'now-6h', to: 'now' },
};
// What Grafana's registry of field options fills in where a dashboard says nothing.
const GRAPH = {
  drawStyle: 'line', lineInterpolation: 'linear', barAlignment: 0, barWidthFactor: 0.6, lineWidth: 1, fillOpacity: 0,
  gradientMode: 'none', spanNulls: false, insertNulls: false, showPoints: 'auto', showValues: false, pointSize: 5,
  stacking: { mode: 'none', group: 'A' }, axisPlacement: 'auto', axisLabel: '', axisColorMode: 'text', axisBorderShow: false,
  scaleDistribution: { type: 'linear' }, axisCenteredZero: false, hideFrom: { tooltip: false, viz: false, legend: false },
  thresholdsStyle: { mode: 'off' },
};

function named(legend: string | undefined, labels: Record<string, string>): string {
  if (legend) {
    return legend.replace(/{{\s*(\w+)\s*}}/g, (_, label) => labels[label] ?? '');
  }
  const pairs = Object.entries(labels).filter(([label]) => label !== '__name__');
  return pairs.length ? `{${pairs.map(([label, value]) => `${label}="${value}"`).join(', ')}}` : 'value';
}

function configured(panel: any, field: Field, base: object): Field {
  const { defaults, overrides } = panel.fieldConfig;
  const config: any = { ...defaults, custom: { ...base, ...defaults.custom }, displayNameFromDS: field.config.displayNameFromDS };
  for (const override of overrides ?? []) {
    if (override.matcher.id === 'byName' && override.matcher.options === (field.config.displayNameFromDS ?? field.name)) {
      for (const { id, value } of override.properties) {
        if (id.startsWith('custom.')) {
          config.custom[id.slice('custom.'.length)] = value;
        } else {
          config[id] = value;
        }
      }
    }
  }
  const made: Field = { ...field, config };
  made.display = getDisplayProcessor({ field: made, theme });
  return made;
}

function series(panel: any): DataFrame[] {
  const frames: DataFrame[] = [];
  for (const target of panel.targets) {
    for (const one of window.ANSWERS[panel.id][target.refId]) {
      const name = named(target.legendFormat, one.metric);
      const points = new Map<number, number>((one.values ?? [one.value]).map(([at, value]: [number, string]) => [at, Number(value)]));
      const [begin, end] = window.SPAN;
      const times = one.values ? Array.from({ length: Math.floor((end - begin) / window.STEP) + 1 }, (_, i) => begin + i * window.STEP)
        : [...points.keys()];
      const value = { name: 'Value', type: FieldType.number, labels: one.metric, values: times.map((at) => points.get(at) ?? null),
        config: { displayNameFromDS: name } };
      const time = { name: 'Time', type: FieldType.time, values: times.map((at) => at * 1000), config: {} };
      frames.push(createDataFrame({ name, refId: target.refId, fields: [time, value] }));
    }
  }
  let at = 0;
  return frames.map((frame) => ({ ...frame, fields: frame.fields.map((field) => {
    const made = field.type === FieldType.time ? field : configured(panel, field, GRAPH);
    if (field.type !== FieldType.time) {
      made.state = { seriesIndex: at++, displayName: field.config.displayNameFromDS };
      made.display = getDisplayProcessor({ field: made, theme });
    }
    return made;
  }) }));
}

function Graph({ panel, width, height }: { panel: any; width: number; height: number }) {
  const frames = series(panel);
  if (!frames.length) {
    return <Nothing />;
  }
  return (
    <PanelContextProvider value={{ eventBus: new EventBusSrv(), eventsScope: 'draw' }}>
      <TimeSeries frames={frames} timeRange={range} timeZone="utc" width={width} height={height} legend={panel.options.legend}
        structureRev={1} options={panel.options}>
        {(builder: any) => <Marks builder={builder} />}
      </TimeSeries>
    </PanelContextProvider>
  );
}

// Events as Grafana marks them: a dashed line down each graph.
function Marks({ builder }: { builder: any }) {
  useLayoutEffect(() => {
    builder.addHook('draw', (plot: any) => {
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.setLineDash([4, 4]);
      for (const { time, colour } of window.EVENTS) {
        const x = Math.round(plot.valToPos(time * 1000, 'x', true));
        ctx.strokeStyle = theme.visualization.getColorByName(colour);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
      ctx.restore();
    });
  }, [builder]);
  return null;
}

function Timeline({ panel, width, height }: { panel: any; width: number; height: number }) {
  const rows = series(panel).map((frame) => ({ times: frame.fields[0].values, field: frame.fields[1] }));
  const [begin, end] = window.SPAN.map((at) => at * 1000);
  const left = 130, each = Math.min(40, height / Math.max(rows.length, 1)), scale = (width - left) / (end - begin);
  return (
    <svg width={width} height={height} style={{ fontSize: 12 }}>
      {rows.map(({ times, field }, row) => {
        const states: { from: number; to: number; value: number }[] = [];
        field.values.forEach((value, i) => {
          const last = states[states.length - 1];
          const to = Math.min(times[i] + window.STEP * 1000, end);
          if (last && last.value === value && last.to >= times[i]) {
            last.to = to;
          } else if (value !== null) {
            states.push({ from: times[i], to, value });
          }
        });
        return (
          <g key={row} transform={`translate(0, ${row * each})`}>
            <text x={left - 8} y={each / 2} dy="0.35em" textAnchor="end" fill={theme.colors.text.primary}>
              {field.config.displayNameFromDS}
            </text>
            {states.map(({ from, to, value }) => {
              const shown = field.display!(value), x = left + (from - begin) * scale, wide = (to - from) * scale;
              return (
                <g key={from}>
                  <rect x={x} y={each * 0.1} width={wide} height={each * 0.8} fill={shown.color} fillOpacity={0.7} />
                  {wide > 60 && <text x={x + 6} y={each / 2} dy="0.35em" fill="white">{shown.text}</text>}
                </g>
              );
            })}
          </g>
        );
      })}
    </svg>
  );
}

function Figure({ panel, width, height }: { panel: any; width: number; height: number }) {
  const found = series(panel).flatMap((frame) => frame.fields.filter((field) => field.type === FieldType.number));
  if (!found.length) {
    return <Nothing />;
  }
  const each = width / found.length;
  return (
    <div style={{ display: 'flex' }}>
      {found.map((field, i) => (
        <BigValue key={i} theme={theme} width={each} height={height} value={field.display!(field.values[field.values.length - 1])}
          colorMode={panel.options.colorMode as BigValueColorMode} graphMode={BigValueGraphMode.None}
          justifyMode={BigValueJustifyMode.Auto} textMode={BigValueTextMode.Value} />
      ))}
    </div>
  );
}

// The transformations of our tables: the columns' answers merged by their labels, named and in their order.
function merged(panel: any): DataFrame {
  const { excludeByName, indexByName, renameByName } = panel.transformations.find((one: any) => one.id === 'organize').options;
  const keys = Object.keys(indexByName).filter((name) => !(name in renameByName) && !excludeByName[name]);
  const rows = new Map<string, Record<string, any>>();
  for (const target of panel.targets) {
    for (const one of window.ANSWERS[panel.id][target.refId]) {
      const key = keys.map((name) => one.metric[name]).join('\n');
      const row = rows.get(key) ?? rows.set(key, Object.fromEntries(keys.map((name) => [name, one.metric[name]]))).get(key)!;
      row[`Value #${target.refId}`] = Number(one.value[1]);
    }
  }
  const names = Object.keys(indexByName).filter((name) => !excludeByName[name]).sort((a, b) => indexByName[a] - indexByName[b]);
  const fields = names.map((name) => {
    const type = name in renameByName ? FieldType.number : FieldType.string;
    const field = { name: renameByName[name] ?? name, type, config: {}, values: [...rows.values()].map((row) => row[name] ?? null) };
    return configured(panel, field as Field, { align: 'auto', cellOptions: { type: 'auto' } });
  });
  return createDataFrame({ fields });
}

function Rows({ panel, width, height }: { panel: any; width: number; height: number }) {
  return <TableNG data={merged(panel)} width={width} height={height} timeRange={range} structureRev={1}
    sortBy={panel.options.sortBy} />;
}

function Nothing() {
  return <div style={{ color: theme.colors.text.secondary, textAlign: 'center', paddingTop: 40 }}>No data</div>;
}

const KINDS: Record<string, typeof Graph> = {
  timeseries: Graph, stat: Figure, table: Rows, 'state-timeline': Timeline,
};

function Placed({ panel }: { panel: any }) {
  const { x, y, w, h } = panel.gridPos;
  const style = { position: 'absolute' as const, left: x * CELL.width + CELL.gap / 2, top: y * CELL.height + 40 };
  const width = w * CELL.width - CELL.gap, height = h * CELL.height - CELL.gap;
  if (panel.type === 'row') {
    return <div style={{ ...style, ...theme.typography.h4, paddingTop: 2 }}>⌄ {panel.title}</div>;
  }
  const Kind = KINDS[panel.type];
  return (
    <div style={style}>
      <PanelChrome title={panel.title} description={panel.description} width={width} height={height} padding={panel.type === 'stat' ? 'none' : 'sm'}>
        {(innerWidth: number, innerHeight: number) => <Kind panel={panel} width={innerWidth} height={innerHeight} />}
      </PanelChrome>
    </div>
  );
}

function Page() {
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ ...theme.typography.h3, padding: '8px 6px' }}>{window.BOARD.title}</div>
      {window.BOARD.panels.map((panel: any) => <Placed key={panel.id} panel={panel} />)}
    </ThemeContext.Provider>
  );
}

document.body.style.cssText = `margin:0;background:${theme.colors.background.canvas};color:${theme.colors.text.primary};`
  + `font-family:${theme.typography.fontFamily};font-size:14px;position:relative`;
createRoot(document.getElementById('board')!).render(<Page />);
